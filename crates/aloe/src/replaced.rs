//! What a stage is about to replace. A stage's folder is replaced whole, so a folder is refused that holds files no record of ours lists, that is
//! one of the stage's inputs, or that holds one. Reads the folder; changes nothing.

use crate::failure::Failure;
use crate::stage::MARK;
use aloe_record::{Record, atomic, digest};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Names that a message lists.
const SHOWN: usize = 5;

/// Files that show a folder to be a model, an adapter or a stage's.
const MODEL: [&str; 3] = ["config.json", "adapter_config.json", "record.json"];

/// The files in the folders of a finished stage, by their paths below it: what its record lists, so that a later run knows them from
/// a user's. Those that stand in the folder itself are in the record's outputs.
pub(crate) fn files_below(out: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for path in entries(out).into_iter().filter(|path| is_folder(path)) {
        walk(out, &path, &mut found);
    }
    found
}

/// Refuses a folder that is not empty and not the output of this kind of stage, and one that holds files that the record in it does not list.
pub(crate) fn refuse_foreign(kind: &str, out: &Path) -> anyhow::Result<()> {
    let is_empty = !out.exists() || std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty {
        return Ok(());
    }
    match Record::read(out) {
        // Hidden files stay where nothing is replaced: whether that is so is not known yet.
        Ok(record) if record.kind == kind => refuse_unlisted(out, &record, false),
        _ => {
            let text = format!(
                "{} exists and is not the output of an earlier `aloe {kind}`; nothing was written. Choose another folder to write, or \
                 remove it",
                out.display()
            );
            Err(Failure::usage(text).into())
        }
    }
}

/// Refuses to replace a folder with files that its record does not list, hidden ones included.
pub(crate) fn refuse_to_lose_files(out: &Path) -> anyhow::Result<()> {
    match Record::read(out) {
        Ok(record) => refuse_unlisted(out, &record, true),
        Err(_) => Ok(()),
    }
}

fn refuse_unlisted(out: &Path, record: &Record, with_hidden: bool) -> anyhow::Result<()> {
    let mut found = unlisted(out, record);
    found.retain(|name| with_hidden || !name.starts_with('.'));
    if found.is_empty() {
        return Ok(());
    }
    let more = if found.len() > SHOWN { format!(" and {} more", found.len() - SHOWN) } else { String::new() };
    let text = format!(
        "{} holds files that `aloe {}` did not write: {}{more}. The folder is replaced whole, and they would be lost; nothing was changed. \
         Move them elsewhere, or choose another folder to write",
        out.display(),
        record.kind,
        found.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", "),
    );
    Err(Failure::usage(text).into())
}

/// What stands in a stage's folder and not in its record, by paths below the folder.
fn unlisted(out: &Path, record: &Record) -> Vec<String> {
    let listed: BTreeSet<&str> = record.files.iter().map(String::as_str).collect();
    // The working files of a stage whose folder got its name just before a kill.
    let was_killed = out.join(MARK).exists();
    let mut found = Vec::new();
    for path in entries(out) {
        let name = below(out, &path);
        let is_folder = is_folder(&path);
        let is_ours = record.outputs.contains_key(&name)
            || digest::bears_time(&name)
            || (name.starts_with('.') && was_killed && !is_folder);
        if !is_ours {
            found.push(name);
        } else if is_folder {
            let mut inner = Vec::new();
            walk(out, &path, &mut inner);
            // A record of an earlier program lists no files of folders; it wrote none that are hidden.
            let is_hidden = |file: &str| file.split('/').any(|part| part.starts_with('.'));
            inner.retain(|file| if listed.is_empty() { is_hidden(file) } else { !listed.contains(file.as_str()) });
            found.extend(inner);
        }
    }
    found
}

fn walk(out: &Path, folder: &Path, found: &mut Vec<String>) {
    for path in entries(folder) {
        match is_folder(&path) {
            true => walk(out, &path, found),
            false => found.push(below(out, &path)),
        }
    }
}

/// The entries of a folder by name. One that cannot be listed has none: reading it fails where its content matters.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// A link to a folder is an entry of its own: what it leads to is not replaced.
fn is_folder(path: &Path) -> bool {
    path.is_dir() && !path.is_symlink()
}

fn below(out: &Path, path: &Path) -> String {
    path.strip_prefix(out).unwrap_or(path).to_string_lossy().into_owned()
}

/// Refuses a folder to write that is an input or holds one, which would be gone when it is replaced; for a merge also one that lies inside an
/// input, which would then hold the result of itself.
pub(crate) fn refuse_inputs<'a>(kind: &str, out: &Path, inputs: impl Iterator<Item = &'a Path>) -> anyhow::Result<()> {
    let target = atomic::real(out);
    for input in inputs {
        let Ok(found) = input.canonicalize() else { continue };
        let is_model = matches!(kind, "merge" | "merge-search") && MODEL.iter().any(|file| found.join(file).is_file());
        let relation = match (found == target, found.starts_with(&target), target.starts_with(&found) && is_model) {
            (true, ..) => "is",
            (_, true, _) => "holds",
            (.., true) => "lies inside",
            _ => continue,
        };
        let text = format!(
            "{} {relation} the input {}; nothing was written. Choose another folder to write",
            out.display(),
            input.display()
        );
        return Err(Failure::usage(text).into());
    }
    Ok(())
}

/// Where a folder to write really stands: what a link leads to, whether that exists or not, so that the link stays a link.
pub(crate) fn followed(out: &Path) -> anyhow::Result<PathBuf> {
    let mut path = out.to_path_buf();
    for _ in 0..40 {
        if !path.is_symlink() {
            return Ok(path);
        }
        let target = std::fs::read_link(&path).map_err(aloe_record::Error::io("read", &path))?;
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    Err(Failure::usage(format!("{} is a link that leads back to itself", out.display())).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A folder with `a.txt`, `model/config.json` and the record of a merge that wrote both.
    fn finished(with_list: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("model")).unwrap();
        std::fs::write(dir.path().join("a.txt"), "a").unwrap();
        std::fs::write(dir.path().join("model/config.json"), "{}").unwrap();
        let mut record = Record::start("merge", "m");
        record.outputs.insert("a.txt".into(), json!("x"));
        record.outputs.insert("model".into(), json!("x"));
        if with_list {
            record.files = files_below(dir.path());
            assert_eq!(record.files, ["model/config.json"]);
        }
        record.finish(dir.path(), std::time::Instant::now(), 0.0).unwrap();
        dir
    }

    fn put(dir: &Path, name: &str) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "years of work").unwrap();
    }

    #[test]
    fn files_that_the_record_does_not_list_are_named_wherever_they_stand() {
        let dir = finished(true);
        refuse_foreign("merge", dir.path()).unwrap();
        refuse_to_lose_files(dir.path()).unwrap();
        // What the record lists may be edited.
        std::fs::write(dir.path().join("a.txt"), "edited").unwrap();
        refuse_to_lose_files(dir.path()).unwrap();
        for name in ["thesis.txt", "notes/one.md", "model/adapter.bin", "model/eval/scores.csv"] {
            put(dir.path(), name);
            let error = refuse_foreign("merge", dir.path()).unwrap_err();
            assert_eq!(crate::failure::exit_code(&error, 0), 2);
            let shown = if name.starts_with("notes") { "notes" } else { name };
            assert!(error.to_string().contains(shown), "{error}");
            let gone = dir.path().join(if name.starts_with("notes") { "notes/one.md" } else { name });
            std::fs::remove_file(gone).unwrap();
            let _ = std::fs::remove_dir(dir.path().join("notes"));
        }
    }

    #[test]
    fn hidden_files_stand_in_the_way_of_a_replacement_alone_unless_a_kill_left_them() {
        for (with_list, name) in
            [(true, ".git/config"), (true, ".env"), (true, "model/.git/config"), (false, "model/.git/config")]
        {
            let dir = finished(with_list);
            put(dir.path(), name);
            let error = refuse_to_lose_files(dir.path()).unwrap_err().to_string();
            assert!(error.contains(name.split("/config").next().unwrap()), "{name}: {error}");
            if !name.contains("model") {
                refuse_foreign("merge", dir.path()).unwrap();
            }
        }
        let dir = finished(true);
        put(dir.path(), ".answers.log");
        put(dir.path(), MARK);
        refuse_to_lose_files(dir.path()).unwrap();
    }

    #[test]
    fn an_output_that_is_holds_or_lies_inside_an_input_is_refused_through_links_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("models/a")).unwrap();
        std::fs::write(path("models/a/config.json"), "{}").unwrap();
        std::os::unix::fs::symlink(path("models"), path("link")).unwrap();
        let relation = |kind: &str, out: &str| {
            let error = refuse_inputs(kind, &path(out), [path("models/a")].iter().map(PathBuf::as_path)).err()?;
            let text = error.to_string();
            ["is", "holds", "lies inside"].into_iter().find(|word| text.contains(&format!(" {word} the input")))
        };
        for (out, expected) in [
            ("models/a", Some("is")),
            ("link/a", Some("is")),
            ("models", Some("holds")),
            ("link", Some("holds")),
            ("models/a/out", Some("lies inside")),
            ("link/a/new/out", Some("lies inside")),
            ("models/ab", None),
            ("models/b", None),
            ("out", None),
        ] {
            assert_eq!(relation("merge", out), expected, "{out}");
        }
        assert_eq!(relation("eval", "models/a/out"), None);
        assert_eq!(relation("eval", "models"), Some("holds"));
    }

    #[test]
    fn a_link_is_followed_to_where_it_leads_and_a_circle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, target) in [("one", "two"), ("two", "far/away"), ("x", "y"), ("y", "x")] {
            std::os::unix::fs::symlink(target, path(name)).unwrap();
        }
        assert_eq!(followed(&path("one")).unwrap(), path("far/away"));
        assert_eq!(followed(&path("plain")).unwrap(), path("plain"));
        assert!(followed(&path("x")).unwrap_err().to_string().contains("leads back to itself"));
    }
}
