//! Which folder this is: a run folder's own name among jobs, and whether it is a copy of one whose jobs go on elsewhere.
//!
//! `state/token` holds the name, and where it was drawn: the number of the folder `state/` in its file system, which a move keeps and a copy
//! does not, and the run folder's path, which file systems without lasting numbers keep. The only absolute path that `state/` holds.

use crate::lock::{StageLock, is_held};
use crate::plan::RunPlan;
use crate::state::{Event, update};
use crate::{Error, Result};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A name and the folder that it was drawn for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Home {
    token: String,
    /// `None` of a run folder of an earlier version.
    place: Option<(u64, PathBuf)>,
}

impl Home {
    fn path(run: &Path) -> PathBuf {
        run.join("state").join("token")
    }

    fn read(run: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(Self::path(run)).ok()?;
        let mut lines = text.splitn(3, '\n');
        let token = lines.next()?.trim().to_owned();
        let inode = lines.next().and_then(|line| line.parse().ok());
        let path = lines.next().map(|line| PathBuf::from(line.trim_end_matches('\n')));
        Some(Self { token, place: inode.zip(path) })
    }

    /// Writes `token` as that of this folder.
    fn write(run: &Path, token: &str) -> Result<()> {
        let (inode, path) = place_of(run)?;
        let text = format!("{token}\n{inode}\n{}\n", path.display());
        Ok(aloe_record::atomic::write(&Self::path(run), text.as_bytes())?)
    }
}

fn place_of(run: &Path) -> Result<(u64, PathBuf)> {
    let state = run.join("state");
    std::fs::create_dir_all(&state).map_err(aloe_record::Error::io("create", &state))?;
    let inode = state.metadata().map_err(aloe_record::Error::io("read", &state))?.ino();
    let path = run.canonicalize().map_err(aloe_record::Error::io("resolve", run))?;
    Ok((inode, path))
}

/// Eight letters that no other folder has.
fn drawn() -> Result<String> {
    use std::io::Read as _;
    let mut bytes = [0u8; 4];
    let source = Path::new("/dev/urandom");
    let mut file = std::fs::File::open(source).map_err(aloe_record::Error::io("open", source))?;
    file.read_exact(&mut bytes).map_err(aloe_record::Error::io("read", source))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// This run folder's own name among jobs: drawn once and kept in `state/`.
pub(crate) fn run_token(run: &Path) -> Result<String> {
    if let Some(home) = Home::read(run) {
        return Ok(home.token);
    }
    Home::write(run, &drawn()?)?;
    // Of two that draw at once the last to rename wins; both read what stands.
    let path = Home::path(run);
    let stands = Home::read(run).ok_or_else(|| Error::Folder { path, reason: "cannot be read".to_owned() })?;
    Ok(stands.token)
}

/// The folder that this one is a copy of, as far as number and path tell: a mount with its own numbers and another path (sshfs, CIFS) looks the
/// same, so that who only looks asks this and claims nothing. Nothing is written.
pub(crate) fn copied_from(run: &Path) -> Result<Option<PathBuf>> {
    let Some(Home { place: Some((inode, path)), .. }) = Home::read(run) else { return Ok(None) };
    let here = place_of(run)?;
    Ok((inode != here.0 && path != here.1).then_some(path))
}

/// What a copy of a run folder was at work on is not its own: those jobs go on in the folder that it was copied from. They are given up here,
/// and neither asked about nor cancelled there, and the copy gets a name of its own. Only who submits or cancels claims, with the lock of
/// the clients: of two in a copy one draws the name. Returns the folder that it was copied from.
pub(crate) fn claim(run: &Path, plan: &RunPlan, _client: &StageLock) -> Result<Option<PathBuf>> {
    let Some(home) = Home::read(run) else { return Ok(None) };
    let Some(from) = copied_from(run)? else {
        // It was moved, or is of an earlier version.
        if home.place != Some(place_of(run)?) {
            Home::write(run, &home.token)?;
        }
        return Ok(None);
    };
    let mut given_up = Vec::new();
    for stage in &plan.stages {
        // Somebody began it here by hand.
        let is_own = is_held(run, &stage.name)?;
        update(run, &stage.name, |now| {
            let is_theirs = now.phase.is_open() && !is_own;
            let job = now.job.as_deref().or(now.job_name.as_deref()).unwrap_or("not known");
            let reason = format!("this folder is a copy of {}, whose job {job} it is", from.display());
            given_up.extend(is_theirs.then(|| stage.name.clone()));
            Ok(is_theirs.then_some(Event::Cancelled { reason }))
        })?;
    }
    Home::write(run, &drawn()?)?;
    let jobs = if given_up.is_empty() {
        String::new()
    } else {
        format!("; the jobs of {} are that folder's", given_up.join(", "))
    };
    aloe_record::tell(&format!("note: {} is a copy of {}{jobs}", run.display(), from.display()));
    Ok(Some(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_a_folder_is_drawn_once_and_a_move_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::create_dir(&one).unwrap();
        let first = run_token(&one).unwrap();
        assert_eq!((first.len(), run_token(&one).unwrap()), (8, first.clone()));
        std::fs::rename(&one, &two).unwrap();
        let plan = RunPlan {
            version: 1,
            name: "r".into(),
            place: crate::Where::Local,
            recipe_sha256: String::new(),
            stages: vec![],
        };
        let client = StageLock::of_client(&two).unwrap().unwrap();
        assert_eq!((copied_from(&two).unwrap(), claim(&two, &plan, &client).unwrap()), (None, None));
        assert_eq!(run_token(&two).unwrap(), first);
        // What lies where it was before is no longer it.
        let path = two.canonicalize().unwrap();
        assert_eq!(Home::read(&two).unwrap().place.unwrap().1, path);
        // Of an earlier version: the name alone.
        std::fs::write(Home::path(&two), "0123abcd").unwrap();
        assert_eq!((claim(&two, &plan, &client).unwrap(), run_token(&two).unwrap().as_str()), (None, "0123abcd"));
        assert_eq!(Home::read(&two).unwrap().place.unwrap().1, path);
    }
}
