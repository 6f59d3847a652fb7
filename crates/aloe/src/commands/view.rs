//! `aloe view`: a page for looking at an evaluation, finished or under way. Writes the page and, of long runs, an index beside the run;
//! nothing into the run's folder: a stage's record vouches for all that lies there.

use crate::cli::ViewArgs;
use crate::failure::Failure;
use crate::outputs;
use aloe_eval::view::{MOST_RUNS, Run, index_path, write};
use aloe_record::{Record, atomic};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Reads the runs and writes the page.
pub(crate) fn run(args: &ViewArgs) -> anyhow::Result<()> {
    let folders: Vec<&Path> = [&args.run].into_iter().chain(&args.against).map(PathBuf::as_path).collect();
    if folders.len() > MOST_RUNS {
        return Err(Failure::usage(format!("{} runs: a page shows {MOST_RUNS} at most", folders.len())).into());
    }
    let found: Vec<PathBuf> = folders.iter().map(|folder| existing(folder)).collect::<anyhow::Result<_>>()?;
    let names = names(&folders);
    // What a record vouches for is hashed while the runs are read.
    let (notes, runs) = std::thread::scope(|scope| {
        let checked = scope.spawn(|| {
            let notes = found.iter().zip(&names).map(|(folder, name)| Some(format!("{name}: {}", changed(folder)?)));
            notes.flatten().collect::<Vec<String>>()
        });
        let read = |(folder, name): (&PathBuf, &String)| Run::read(folder, name, &index_path(folder));
        let runs: aloe_eval::Result<Vec<Run>> = found.iter().zip(&names).map(read).collect();
        (checked.join().unwrap_or_default(), runs)
    });
    let runs = runs?;
    for (folder, run) in found.iter().zip(&runs) {
        if let Some(reason) = &run.unkept {
            let index = index_path(folder);
            aloe_record::tell(&format!("warning: {} is not kept, and read anew next time: {reason}", index.display()));
        }
    }
    let out = match &args.out {
        Some(out) => out.clone(),
        None => beside(&args.run)?,
    };
    write(&runs[0], &runs[1..], &notes, &out)?;
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
        Ok(record) if !["eval", "rejudge", "rescore"].contains(&record.kind.as_str()) => {
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

/// The runs' names: their folders', with as many of the folders above as tell them apart.
fn names(folders: &[&Path]) -> Vec<String> {
    let parts = |path: &&Path| -> Vec<String> {
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        whole.components().rev().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let parts: Vec<Vec<String>> = folders.iter().map(parts).collect();
    let named = |n: usize| -> Vec<String> {
        let name = |parts: &Vec<String>| parts.iter().take(n).rev().map(String::as_str).collect::<Vec<_>>().join("/");
        parts.iter().map(name).collect()
    };
    let are_apart = |n: &usize| named(*n).iter().collect::<BTreeSet<_>>().len() == folders.len();
    let most = parts.iter().map(Vec::len).max().unwrap_or(1);
    // One folder twice has no two names.
    named((1..=most).find(are_apart).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_called_by_their_folders_and_by_those_above_where_these_are_alike() {
        let of = |folders: &[&str]| names(&folders.iter().map(Path::new).collect::<Vec<_>>());
        assert_eq!(of(&["/x/a/eval"]), ["eval"]);
        assert_eq!(of(&["/x/a/eval", "/x/b/base"]), ["eval", "base"]);
        assert_eq!(of(&["/x/a/eval", "/x/b/eval", "/x/b/base"]), ["a/eval", "b/eval", "b/base"]);
        assert_eq!(of(&["/x/eval", "/x/eval"]), ["eval", "eval"]);
    }

    #[test]
    fn the_page_stands_beside_the_run_and_not_in_it() {
        assert_eq!(beside(Path::new("/x/a/eval/")).unwrap(), Path::new("/x/a/eval.html"));
        assert!(beside(Path::new("/")).is_err());
    }
}
