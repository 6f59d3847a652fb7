//! `aloe view`: a page for looking at an evaluation, finished or under way. Writes the page and nothing else, and never into the run's
//! folder: a stage's record vouches for all that lies there.

use crate::cli::ViewArgs;
use crate::failure::Failure;
use crate::outputs;
use aloe_eval::view::{Run, write};
use aloe_record::{Record, atomic};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Reads the runs and writes the page.
pub(crate) fn run(args: &ViewArgs) -> anyhow::Result<()> {
    let names = names(&args.run, args.against.as_deref());
    let mut notes = Vec::new();
    let mut read = |folder: &Path, name: &str| -> anyhow::Result<Run> {
        let folder = existing(folder)?;
        notes.extend(changed(&folder).map(|words| format!("{name}: {words}")));
        Ok(Run::read(&folder, name)?)
    };
    let first = read(&args.run, &names.0)?;
    let second = args.against.as_deref().map(|folder| read(folder, &names.1)).transpose()?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => beside(&args.run)?,
    };
    write(&first, second.as_ref(), &notes, &out)?;
    writeln!(std::io::stdout(), "{}", out.display())?;
    Ok(())
}

/// The run's folder, or the partial one of a run that is under way.
fn existing(folder: &Path) -> anyhow::Result<PathBuf> {
    let holds = |folder: &Path| folder.join("results.json").exists() || folder.join(".answers.log").exists();
    let whole = std::path::absolute(folder)?;
    let found = [whole.clone(), atomic::sibling(&whole)].into_iter().find(|folder| holds(folder));
    let found = found.ok_or_else(|| {
        let text = format!(
            "{} is not the folder of an evaluation: it holds no results.json, and none is under way",
            folder.display()
        );
        Failure::usage(text)
    })?;
    match Record::read(&found) {
        Ok(record) if record.kind != "eval" => {
            let text =
                format!("{} is the output of `aloe {}`; aloe view shows evaluations", folder.display(), record.kind);
            Err(Failure::usage(text).into())
        }
        _ => Ok(found),
    }
}

/// What of a finished run is not what its record says.
fn changed(folder: &Path) -> Option<String> {
    let record = Record::read(folder).ok()?;
    outputs::check(folder, &record).err().map(|error| error.to_string())
}

/// `RUN.html` beside the folder.
fn beside(run: &Path) -> anyhow::Result<PathBuf> {
    let whole = std::path::absolute(run)?;
    let name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| Failure::usage("name the page with --out: the run's folder has no name"))?;
    Ok(whole.with_file_name(format!("{name}.html")))
}

/// The runs' names: their folders', with the folders above where those are alike.
fn names(first: &Path, second: Option<&Path>) -> (String, String) {
    let parts = |path: &Path| -> Vec<String> {
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        whole.components().rev().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let (first, second) = (parts(first), second.map(parts).unwrap_or_default());
    let n_alike = first.iter().zip(&second).take_while(|(a, b)| a == b).count();
    let name = |parts: &[String]| {
        let taken: Vec<&str> = parts.iter().take(n_alike + 1).rev().map(String::as_str).collect();
        taken.join("/")
    };
    (name(&first), name(&second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_called_by_their_folders_and_by_those_above_where_these_are_alike() {
        let of = |a: &str, b: Option<&str>| names(Path::new(a), b.map(Path::new));
        assert_eq!(of("/x/a/eval", None).0, "eval");
        assert_eq!(of("/x/a/eval", Some("/x/b/base")), ("eval".into(), "base".into()));
        assert_eq!(of("/x/a/eval", Some("/x/b/eval")), ("a/eval".into(), "b/eval".into()));
    }

    #[test]
    fn the_page_stands_beside_the_run_and_not_in_it() {
        assert_eq!(beside(Path::new("/x/a/eval/")).unwrap(), Path::new("/x/a/eval.html"));
        assert!(beside(Path::new("/")).is_err());
    }
}
