//! One stage: is it already done, where does it write, what does its record say. Every kind goes through [`execute`].
//!
//! A finished stage whose fingerprint and outputs are unchanged is not run again; an interrupted one resumes from its
//! partial folder when its fingerprint is the same, and starts over otherwise; a training stage with checkpoints refuses to, since
//! hours of work may stand there.

use crate::failure::Failure;
use crate::handoff::job_share;
use crate::input_digests::{TASK_FILES, check_input, digest_of_stage, files_beside_tasks, input_digests};
use crate::recipe::checked::ROWS;
use crate::recipe::quarantines;
use crate::weights::DtypeName;
use crate::{known, leave, lineage, outputs, replaced, served};
use aloe_record::atomic::OutputDir;
use aloe_record::{Cancel, Record, atomic, digest};
use aloe_tensor::{Device, Isa};
use anyhow::Context as _;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What every stage is given beside its own settings.
#[derive(Clone)]
pub(crate) struct Context {
    /// Seed of the recipe or the command line.
    pub(crate) seed: u64,
    /// Threads, at least 1.
    pub(crate) threads: usize,
    /// Type of weights where the stage computes with a model, where one is named.
    pub(crate) dtype: Option<DtypeName>,
    /// Folder of the announcements of servers that hold the stage's model, where these are asked in its place.
    pub(crate) servers: Option<PathBuf>,
    /// Set by Ctrl-C and SIGTERM.
    pub(crate) cancel: Cancel,
}

impl Context {
    /// The device all computing runs on.
    pub(crate) fn device(&self) -> Device {
        Device::cpu(self.threads)
    }
}

/// The named inputs of a stage: folders or files.
pub(crate) type Inputs = BTreeMap<String, Vec<PathBuf>>;

/// Files by the name of the task that reads them.
pub(crate) type TaskFiles = BTreeMap<String, Vec<PathBuf>>;

/// Name and settings of a stage that is about to run.
pub(crate) struct Job<'a> {
    /// Kind, equal to the subcommand.
    pub(crate) kind: &'a str,
    /// Name, equal to the folder.
    pub(crate) name: &'a str,
    /// Settings as written.
    pub(crate) written: Value,
    /// Settings with defaults.
    pub(crate) used: Value,
    /// Inputs by name.
    pub(crate) inputs: &'a Inputs,
    /// Files and folders beside the inputs that the settings name: data sources, task folders.
    pub(crate) extra_files: Vec<PathBuf>,
    /// What each task of an evaluation reads of them, by its name: they decide its results, whatever else lies in a folder of benchmarks.
    pub(crate) task_files: TaskFiles,
    /// The output folder.
    pub(crate) out: &'a Path,
}

impl Job<'_> {
    /// All that its digests are of.
    fn paths(&self) -> impl Iterator<Item = &Path> {
        self.inputs.values().flatten().chain(&self.extra_files).map(PathBuf::as_path)
    }
}

/// What came of a stage.
pub(crate) struct Done {
    /// Its record.
    pub(crate) record: Record,
    /// Whether it was there already.
    pub(crate) was_done: bool,
}

/// Runs `work` unless the stage is done. `work` writes into the folder it is given and puts its figures into the record;
/// the entry `summary` of the results is what the closing table shows.
pub(crate) fn execute(
    context: &Context,
    job: &Job<'_>,
    work: impl FnOnce(&Path, &mut Record) -> anyhow::Result<()>,
) -> anyhow::Result<Done> {
    let out = replaced::followed(job.out)?;
    let (written, used, extra_files) = (job.written.clone(), job.used.clone(), job.extra_files.clone());
    let task_files = job.task_files.clone();
    let job =
        &Job { kind: job.kind, name: job.name, written, used, inputs: job.inputs, extra_files, task_files, out: &out };
    replaced::refuse_inputs(job.kind, job.out, job.paths())?;
    replaced::refuse_foreign(job.kind, job.out)?;
    // A merge hashes its inputs while it reads them, unless there is a result that they may already have led to.
    let has_result = job.out.join("record.json").exists();
    let is_hashed_by_work = job.kind == "merge" && !has_result;
    let inputs = match is_hashed_by_work {
        true => job.paths().try_for_each(check_input).map(|()| Map::new())?,
        false => input_digests(job)?,
    };
    let device = context.device();
    let decides = decides(context, job, &inputs, device.isa().name());
    let fingerprint = digest_of_json(&decides)?;
    let _made = MadeFolders::above(job.out)?;
    let _lock = Lock::take(job.out)?;
    OutputDir::recover(job.out)?;
    let servers = served::addresses(job.inputs, &job.used);
    let finished = finished_of(context, job, &inputs, device.isa().name())?;
    let is_other = finished.as_ref().map_or(Ok(false), |record| served::is_other(record, &servers, &context.cancel))?;
    let is_held_against_other_rows = finished.as_ref().is_some_and(|record| lineage::has_changed(record, job.inputs));
    if let Some(record) = finished.filter(|_| !is_other && !is_held_against_other_rows) {
        // What a kill left of a merge of other settings is of use to nobody, and nobody is writing it: the lock is held.
        if job.kind == "merge" {
            OutputDir::discard(job.out)?;
        }
        // The mark goes last: it stands in a finished folder only when a kill came between the commit and this.
        if job.out.join(MARK).exists() {
            remove_hidden(job.out)?;
        }
        return Ok(Done { record, was_done: true });
    }
    replaced::refuse_to_lose_files(job.out)?;
    if is_held_against_other_rows {
        tell(&format!(
            "{}: the rows that its model was trained on changed; it is made anew and then replaced",
            job.out.display()
        ));
    } else if has_result && !is_other {
        let scores = if job.kind == "merge-search" { "; of its scores those that fit are used" } else { "" };
        let out = job.out.display();
        tell(&format!("{out}: settings, inputs or outputs changed; it is made anew and then replaced{scores}"));
    }
    let folder = open_partial(job, &resumable(job.kind, decides))?;
    let asked = served::Asked::open(job.kind, folder.path(), job.inputs, &servers)?;
    let earlier_s = open_session(folder.path())?;
    aloe_tensor::give_back_freed_memory();
    reset_peak_memory();
    let started = Instant::now();
    let mut record = Record::start(job.kind, job.name);
    record.config_written = job.written.clone();
    record.config_used = job.used.clone();
    record.fingerprint = fingerprint;
    record.inputs = inputs;
    record.seed = context.seed;
    record.device = device.name();
    let mut done = work(folder.path(), &mut record);
    if is_hashed_by_work && done.is_ok() {
        done = identify(context, job, &mut record, device.isa().name());
    }
    if let Err(error) = done {
        return Err(leave::behind(job.kind, folder.path(), error));
    }
    served::note(&mut record, &servers, &asked, &context.cancel);
    job_share::note(&mut record)?;
    record.outputs = outputs::digests(folder.path())?;
    record.files = replaced::files_below(folder.path());
    // What the work took elsewhere, before it came here.
    let earlier_s = earlier_s + record.elapsed_s;
    record.finish(folder.path(), started, earlier_s)?;
    folder.commit()?;
    remove_hidden(job.out)?;
    Ok(Done { record, was_done: false })
}

/// Puts the digests of the inputs into the record, and what depends on them.
fn identify(context: &Context, job: &Job<'_>, record: &mut Record, isa: &str) -> anyhow::Result<()> {
    record.inputs = input_digests(job)?;
    record.fingerprint = digest_of_json(&decides(context, job, &record.inputs, isa))?;
    Ok(())
}

/// The path of the processor that made the finished results in the job's folder, where nobody changed them: this machine's, unless only
/// another one fits.
pub(crate) fn made_on(context: &Context, job: &Job<'_>) -> anyhow::Result<Option<Isa>> {
    let inputs = input_digests(job)?;
    for isa in [context.device().isa()].into_iter().chain(Isa::ALL) {
        if finished_of(context, job, &inputs, isa.name())?.is_some() {
            return Ok(Some(isa));
        }
    }
    Ok(None)
}

/// The finished stage that `inputs` and settings lead to on the processor path `isa`.
fn finished_of(
    context: &Context,
    job: &Job<'_>,
    inputs: &Map<String, Value>,
    isa: &str,
) -> anyhow::Result<Option<Record>> {
    let found = finished(job.out, &digest_of_json(&decides(context, job, inputs, isa))?)?;
    if found.is_some() || job.task_files.is_empty() || !job.out.join("record.json").exists() {
        return Ok(found);
    }
    // Earlier versions took the digest of the whole folder of benchmarks: what they finished stands while nothing in it has changed.
    let (kind, written, used) = (job.kind, job.written.clone(), job.used.clone());
    let (extra_files, task_files) = (job.extra_files.clone(), TaskFiles::new());
    let whole = Job { kind, name: job.name, written, used, inputs: job.inputs, extra_files, task_files, out: job.out };
    let inputs = input_digests(&whole)?;
    finished(job.out, &digest_of_json(&decides(context, &whole, &inputs, isa))?)
}

/// A lock beside the stage's folder, held while the stage runs: two runs into one folder would destroy each other's work.
/// Its file goes when it is released.
struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    fn take(out: &Path) -> anyhow::Result<Self> {
        let name = out.file_name().map_or_else(|| "stage".into(), |name| name.to_string_lossy().into_owned());
        let path = out.with_file_name(format!(".{name}.lock"));
        loop {
            let file = File::create(&path).map_err(aloe_record::Error::io("create", &path))?;
            match file.try_lock() {
                // The holder before us may have removed the file between our opening and locking it.
                Ok(()) if is_same_file(&file, &path) => return Ok(Self { _file: file, path }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let text =
                        format!("another process is writing {}; wait for it, or choose another --out", out.display());
                    return Err(Failure::usage(text).into());
                }
                Err(TryLockError::Error(error)) => return Err(aloe_record::Error::io("lock", &path)(error).into()),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), path.metadata()) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Folders above the stage's that were made for it; those still empty at the end go again.
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn above(out: &Path) -> anyhow::Result<Self> {
        let parent = out.parent().unwrap_or(Path::new("/"));
        let missing = parent.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let missing: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        Ok(Self(missing))
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Notes the start of this session and returns the seconds that earlier, interrupted ones took: from each one's start to
/// the last file it wrote.
fn open_session(partial: &Path) -> anyhow::Result<f64> {
    let path = partial.join(SESSION);
    let earlier_s = match std::fs::read_to_string(&path).ok().and_then(|text| {
        let (spent, started) = text.trim().split_once(' ')?;
        Some((spent.parse::<f64>().ok()?, started.parse::<f64>().ok()?))
    }) {
        Some((spent, started)) => spent + (last_change_unix_s(partial) - started).max(0.0),
        None => 0.0,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64());
    atomic::write(&path, format!("{earlier_s} {now}").as_bytes())?;
    Ok(earlier_s)
}

/// When a file of the folder was last written, in seconds since 1970.
fn last_change_unix_s(folder: &Path) -> f64 {
    let mut last = 0.0f64;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            last = last.max(last_change_unix_s(&path));
        } else if let Ok(changed) = entry.metadata().and_then(|metadata| metadata.modified()) {
            last = last.max(changed.duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64()));
        }
    }
    last
}

/// Removes the working files of a finished stage: the logs it resumed from, its session and, last, its mark.
fn remove_hidden(out: &Path) -> anyhow::Result<()> {
    let remove = |path: &Path| std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()));
    for entry in std::fs::read_dir(out).with_context(|| format!("cannot list {}", out.display()))?.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') && name != MARK && path.is_file() {
            remove(&path)?;
        }
    }
    remove(&out.join(MARK))
}

/// The Hugging Face folder of an input: a stage's `model/`, or the folder (or `.gguf` file) itself.
pub(crate) fn model_of(input: &Path) -> PathBuf {
    let inner = input.join("model");
    if inner.join("config.json").exists() { inner } else { input.to_path_buf() }
}

/// [`model_of`], refused when it is a folder without a model in it.
pub(crate) fn checked_model(input: &Path) -> anyhow::Result<PathBuf> {
    let folder = model_of(input);
    if folder.is_dir() && !folder.join("config.json").exists() {
        let text = format!(
            "{} holds no model (no config.json); give a Hugging Face folder, a .gguf file, or a stage's folder such as \
             runs/quickstart/dpo-2",
            input.display()
        );
        return Err(Failure::usage(text).into());
    }
    Ok(folder)
}

/// The only path under `name`, or a usage error that says which stage needs it.
pub(crate) fn single<'a>(inputs: &'a Inputs, name: &str, kind: &str) -> anyhow::Result<&'a Path> {
    match inputs.get(name).map(Vec::as_slice) {
        Some([only]) => Ok(only),
        Some(_) => Err(Failure::usage(format!("{kind}: input `{name}` takes one value")).into()),
        None => {
            Err(Failure::usage(format!("{kind}: input `{name}` is missing; write from = {{ {name} = \"...\" }}"))
                .into())
        }
    }
}

/// Name of the file that tells which fingerprint a partial folder belongs to.
pub(crate) const MARK: &str = ".fingerprint";

/// Name of the file that holds the seconds of earlier sessions and the start of the present one.
const SESSION: &str = ".session";

fn tell(text: &str) {
    aloe_record::tell(&format!("note: {text}"));
}

/// Name of the file that holds what the fingerprint is of, so that a difference can be named.
const DECIDES: &str = ".decides.json";

fn open_partial(job: &Job<'_>, decides: &Value) -> anyhow::Result<OutputDir> {
    let (kind, out, fingerprint) = (job.kind, job.out, digest_of_json(decides)?);
    let folder = OutputDir::resume(out)?;
    let mark = folder.path().join(MARK);
    let earlier: Value = atomic::read_json(&folder.path().join(DECIDES)).unwrap_or_default();
    let joined = with_other_tasks(kind, &earlier, decides);
    match std::fs::read_to_string(&mark) {
        Ok(_) if kind == "merge" => {
            tell(&format!("{}: an earlier merge was interrupted; starting over", out.display()))
        }
        Ok(found) if found == fingerprint => {
            tell(&format!("{}: going on from an interrupted run", out.display()));
            return Ok(folder);
        }
        Ok(_) if joined.is_some() => {
            tell(&format!("{}: going on from an interrupted run", out.display()));
            let joined = joined.unwrap_or_default();
            return begun(folder, &joined, &digest_of_json(&joined)?);
        }
        // Its log knows each point by all that decides its score. What the run was, and its seconds, are another's.
        Ok(_) if kind == "merge-search" => {
            tell(&format!(
                "{}: an interrupted run had other settings or inputs; of its scores those that fit are used",
                out.display()
            ));
            let session = folder.path().join(SESSION);
            if session.exists() {
                std::fs::remove_file(&session).map_err(aloe_record::Error::io("remove", &session))?;
            }
            return begun(folder, decides, &fingerprint);
        }
        Ok(_) => {
            refuse_to_lose(job, folder.path(), &earlier, decides)?;
            if kind == "dpo" && leave::keep_references(folder.path(), &[MARK, DECIDES])? {
                tell(&format!(
                    "{}: an interrupted run had other settings or inputs; starting over, with those of its reference log-probabilities that fit",
                    out.display()
                ));
                return begun(folder, decides, &fingerprint);
            }
            tell(&format!("{}: an interrupted run had other settings or inputs; starting over", out.display()));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        // Starting over would remove checkpoints that may be whole.
        Err(error) => return Err(aloe_record::Error::io("read", &mark)(error).into()),
    }
    begun(OutputDir::fresh(out)?, decides, &fingerprint)
}

/// Notes what a partial folder belongs to.
fn begun(folder: OutputDir, decides: &Value, fingerprint: &str) -> anyhow::Result<OutputDir> {
    atomic::write_json(&folder.path().join(DECIDES), decides)?;
    atomic::write(&folder.path().join(MARK), fingerprint.as_bytes())?;
    Ok(folder)
}

/// Refuses to start over where a training has checkpoints or a model has answered: what it was started with is named beside what is asked
/// for now.
fn refuse_to_lose(job: &Job<'_>, partial: &Path, earlier: &Value, decides: &Value) -> anyhow::Result<()> {
    let goes_on = match job.kind {
        // A reference alone is taken over, as far as it fits.
        "sft" | "dpo" => leave::training_point(partial),
        "eval" | "redteam" | "synthesis" => leave::resume_point(job.kind, partial),
        _ => None,
    };
    let Some(goes_on) = goes_on else { return Ok(()) };
    let files: Vec<&PathBuf> = files_beside_tasks(job).collect();
    let found: Vec<String> =
        differences("", earlier, decides).into_iter().map(|text| with_path(text, &files)).collect();
    let is_of_earlier_version = !job.task_files.is_empty() && earlier["inputs"].get(TASK_FILES).is_none();
    let found = match (is_of_earlier_version, found.is_empty()) {
        (true, _) => "by an earlier version, which held all of the data folder against it".to_owned(),
        (false, true) => "other settings or inputs".to_owned(),
        (false, false) => found.join("; "),
    };
    Err(Failure::usage(format!(
        "{} holds an unfinished run that was started otherwise: {found}. Nothing was changed. Restore that and the same command {goes_on}; or \
         remove that folder to start over",
        partial.display()
    ))
    .into())
}

/// An unfinished evaluation of other tasks of the same folder: what it and this one read, where the tasks of both read the same. Answers of a
/// task are taken up whatever other tasks are asked for.
fn with_other_tasks(kind: &str, earlier: &Value, now: &Value) -> Option<Value> {
    let taken = |of: &Value| {
        let mut of = of.clone();
        let files = of.get_mut("inputs")?.as_object_mut()?.remove(TASK_FILES)?;
        Some((of, files.as_object()?.clone()))
    };
    let ((rest, mut files), (rest_now, files_now)) = (taken(earlier)?, taken(now)?);
    let is_same = |(task, digests): (&String, &Value)| files.get(task).is_none_or(|earlier| earlier == digests);
    if kind != "eval" || now["config"]["strategy"] == "open" || rest != rest_now || !files_now.iter().all(is_same) {
        return None;
    }
    files.extend(files_now);
    let mut joined = rest_now;
    joined["inputs"][TASK_FILES] = Value::Object(files);
    Some(joined)
}

/// A difference of the input `file 2` with the path of that file.
fn with_path(text: String, files: &[&PathBuf]) -> String {
    let named = files.iter().enumerate().map(|(at, path)| (format!("`file {}`", at + 1), path));
    named.fold(text, |text, (name, path)| text.replace(&name, &format!("`{}`", path.display())))
}

/// What differs between two JSON values, as `key was .., is now ..`. Digests of inputs are only said to differ.
fn differences(key: &str, earlier: &Value, now: &Value) -> Vec<String> {
    if earlier == now {
        return Vec::new();
    }
    if let (Value::Object(left), Value::Object(right)) = (earlier, now) {
        let only_right = right.keys().filter(|name| !left.contains_key(*name));
        let names = left.keys().chain(only_right);
        return names
            .flat_map(|name| {
                let key = if matches!(key, "" | "config") { name.clone() } else { format!("{key} {name}") };
                differences(&key, left.get(name).unwrap_or(&Value::Null), right.get(name).unwrap_or(&Value::Null))
            })
            .collect();
    }
    let (files, of_task) =
        (format!("inputs {TASK_FILES} "), |rest: &str| rest.split_once(' ').map(|(_, path)| path.to_owned()));
    match key.strip_prefix("inputs ") {
        // By task and path. Of a task that only one of the two has, nothing has other content.
        Some(_) if key.starts_with(&files) => match of_task(&key[files.len()..]) {
            Some(path) => vec![format!("the input `{path}` has other content")],
            None => Vec::new(),
        },
        Some(name) => vec![format!("the input `{name}` has other content")],
        None => vec![format!("{key} was {earlier}, is now {now}")],
    }
}

/// The record of a finished stage with this fingerprint whose outputs are what it says; `None` means: run it.
fn finished(out: &Path, fingerprint: &str) -> anyhow::Result<Option<Record>> {
    if !out.join("record.json").exists() {
        return Ok(None);
    }
    let Ok(record) = Record::read(out) else { return Ok(None) };
    let unchanged =
        record.fingerprint == fingerprint && outputs::digests(out)? == record.outputs && quarantines::is_there(&record);
    Ok(unchanged.then_some(record))
}

/// The program version since which a kind of stage gives the same results for the same settings and inputs. A change that
/// alters a result's bytes (a kernel's arithmetic, a prompt's wording, a cleaning rule) sets it to the version being made (and `+1`,
/// `+2` within one), and finished stages are made anew; a new version alone redoes nothing. The pinned digests of
/// `tests/it/revisions.rs` notice a change that was forgotten here.
pub(crate) fn results_since(kind: &str) -> Cow<'static, str> {
    let since = match kind {
        // What a merge and an evaluation give, and how a search asks for them.
        "merge-search" => return format!("0.1.0+2, {}, {}", results_since("merge"), results_since("eval")).into(),
        "pull" | "card" => "0.1.0",
        // sft: losses by data source; dpo: metrics by source of the pairs and with the chosen answers' NLL. bf16 training rounds each
        // operand once, attention's too. 2: held-out figures with their errors and with what changed since the start.
        "sft" | "dpo" => return format!("{}, 2", aloe_train::RESULTS_SINCE).into(),
        // Table B5 exactly, MedMCQA's keys by content, evaluation rows counted by file; +3: identifiers, templates and tokens by task in the
        // manifest, rows of 1 MiB at most; +4: rows with a question's id are held out by the whole id, its number included; +5: rows that share a
        // line have ids of their own, signs and system messages tell rows apart, columns beside a row are read, leaks by whole stems, broken
        // quotes of CSV files are broken rows; +6: rows of one question's text stand on one side of the hold-out whatever their ids, ratings of a
        // prompt are joined across files, contentless instruction rows, numbered streets and names before an apostrophe are found, rows say their
        // licence, split, task and subject, which a stage behind reads, MedQA's rationales are read and its steps are no subjects, overlaps are
        // shown as written; +7: train rows of a file with other splits are no evaluation questions, nor are those of a red-team run alone, a row
        // gets no second template behind a stage, and keeps its licence where the stated one names it beside others; +8: conversations say
        // their question's id and style as pairs do, which a stage behind holds out and drops by; +9: rows say the licence that their own column
        // names, long names of streets are addresses, more eponyms are no names; +10: a model's own answers are read behind a restated question too.
        "data" => "0.1.0+10",
        // 0.1.0+2: masks by the model's name, not its place; +3: nearswap's weight is a reciprocal times t; +4: task_arithmetic takes no density,
        // multislerp of no change is the base, named chat templates are mergekit's; +5: added tokens stand in the vocabulary of a union's tokenizer,
        // texts end where the chosen tokenizer and template end them; +6: masks by the last component of a model's name, new tokens in the order of
        // the file, no tokens past the embedding, ends of templates that print the date; +7: of a stage's `model`, `master` and `adapter` the stage names the mask, no two models of a merge
        // share one, model_stock in float32 rounds once.
        "merge" => "0.1.0+7",
        // What the engine answers; 0.1.0+3: samples of an endpoint count their seeds from the first one's. Of an evaluation also what is
        // made of the answers; 2: answers are read by position alike for every letter, figures by subject, length and calibration; 3: answers are
        // read behind a restated question, a training row marks every question that it holds, samples say which question they ask, questions of
        // the example pool that were not solved are told too, comparisons are adjusted for their rows, open answers and averages say why they
        // are not comparable, an answer without verdicts is no tie; 4: clustered intervals are Wilson's throughout.
        "eval" => return format!("{}, 4", aloe_engine::ANSWERS_SINCE).into(),
        // Also which solutions are kept; 2: those in three parts; 3: MedQA's rationales are shown to the writer; 4: answers are read as in 3 of eval.
        "synthesis" => return format!("{}, 4", aloe_engine::ANSWERS_SINCE).into(),
        // Also what its samples tell; 2: whether an answer was cut at its limit; 3: intervals are Wilson's whatever the rate.
        "redteam" => return format!("{}, 3", aloe_engine::ANSWERS_SINCE).into(),
        // 2: an answer without verdicts is no tie, refused questions leave no comparable figure.
        "rejudge" => return format!("{}, 2", aloe_engine::ANSWERS_SINCE).into(),
        _ => env!("CARGO_PKG_VERSION"),
    };
    since.into()
}

/// Everything that decides a stage's result.
fn decides(context: &Context, job: &Job<'_>, inputs: &Map<String, Value>, isa: &str) -> Value {
    // Training stages hold their dtype in their settings; the others but these do not compute with a model.
    let asks = job.kind == "data" && job.inputs.keys().any(|name| name != ROWS);
    let computes = asks || matches!(job.kind, "eval" | "rejudge" | "redteam" | "synthesis" | "merge-search");
    let dtype = computes.then(|| match context.dtype {
        None if job.inputs.get("model").is_some_and(|paths| paths.iter().any(|path| path.is_file())) => "Gguf".into(),
        dtype => format!("{:?}", dtype.unwrap_or_default()),
    });
    // What a server answers does not depend on the processor that asks.
    let is_address = |paths: &Vec<PathBuf>| paths.iter().any(|path| path.to_string_lossy().starts_with("http"));
    let is_served = job.inputs.get("model").is_some_and(is_address) || job.used.get(SERVED_BY).is_some();
    let asks_a_server = computes && !asks && is_served;
    // Nor does what a foreign trainer made depend on the processor that takes it over.
    let is_foreign = matches!(job.kind, "sft" | "dpo") && job.used.get("trainer").is_some();
    let isa = match (asks_a_server, is_foreign) {
        (true, _) => "of the server",
        (_, true) => "of the trainer",
        _ => isa,
    };
    let mut decides = json!({
        "kind": job.kind, "config": job.used, "inputs": inputs, "seed": context.seed, "dtype": dtype, "isa": isa,
        "version": results_since(job.kind),
    });
    if may_skip(job.kind, &decides["config"]) {
        decides[SKIPS] = SKIPS_SINCE.into();
    }
    if !is_foreign && freezes_bf16(job.kind, &decides["config"]) {
        decides["frozen weights"] = FREEZES_SINCE.into();
    }
    decides
}

/// 2: frozen weights whose start holds f32 masters are the copies that training of all weights has, no longer to nearest.
const FREEZES_SINCE: &str = "2";

/// Whether LoRA trains beside bf16 weights here.
fn freezes_bf16(kind: &str, config: &Value) -> bool {
    matches!(kind, "sft" | "dpo") && config["lora"]["base"] == "dense" && config["dtype"] == "bf16"
}

/// What decides of a training that may skip steps; others are what they were.
const SKIPS: &str = "skips";
/// 2: a skipped step is none of AdamW's for its bias correction.
const SKIPS_SINCE: &str = "2";

fn may_skip(kind: &str, config: &Value) -> bool {
    matches!(kind, "sft" | "dpo") && ["on_nonfinite", "on_spike"].iter().any(|key| config[*key] == "skip")
}

fn digest_of_json(value: &Value) -> anyhow::Result<String> {
    Ok(digest::bytes(serde_json::to_string(value)?.as_bytes()))
}

/// What an interrupted run must have been started with to be gone on with. How often a training saves changes no result, and how it
/// meets faults may change until it has met one, which the training itself checks.
fn resumable(kind: &str, mut decides: Value) -> Value {
    if let (true, Some(config)) = (matches!(kind, "sft" | "dpo"), decides["config"].as_object_mut()) {
        config.retain(|key, _| {
            !["recompute", "checkpoint_every", "keep_last", "on_spike", "on_nonfinite"].contains(&key.as_str())
        });
    }
    // Whether a step has been skipped, and by which rule, the training's checkpoints know.
    if let Some(decides) = decides.as_object_mut() {
        decides.remove(SKIPS);
    }
    // The log of answers knows each question: more questions or tasks take its answers up.
    let is_closed = kind == "eval" && decides["config"]["strategy"] != "open";
    if let (true, Some(config)) = (is_closed, decides["config"].as_object_mut()) {
        config.retain(|key, _| !["tasks", "limit", "expect_accuracy"].contains(&key.as_str()));
    }
    // Nor does the log of a synthesis depend on how many questions and attempts are asked for.
    if let (true, Some(config)) = (kind == "synthesis", decides["config"].as_object_mut()) {
        config.retain(|key, _| !["tasks", "limit", "attempts", "blind", "in_parts"].contains(&key.as_str()));
    }
    // A merge search with more points goes on from one with fewer.
    if let (true, Some(config)) = (kind == "merge-search", decides["config"].as_object_mut()) {
        config.retain(|key, _| key != "space");
        if let Some(search) = config.get_mut("search").and_then(Value::as_object_mut) {
            search.retain(|key, _| key != "evaluations");
        }
    }
    // Nor do they depend on where a server of the model listens: whoever goes on with the answers holds the servers now asked against what
    // those then asked answered to known prompts.
    if matches!(kind, "eval" | "redteam" | "synthesis") {
        if let Some(inputs) = decides["inputs"].as_object_mut() {
            inputs.values_mut().for_each(served::without_address);
        }
        if let Some(embedder) = decides["config"].get_mut("embedder") {
            served::without_address(embedder);
        }
    }
    // Answers do not depend on who judges them, and the log keeps verdicts by judge.
    if let (true, Some(inputs)) = (matches!(kind, "eval" | "rejudge"), decides["inputs"].as_object_mut()) {
        inputs.remove("judge");
    }
    decides
}

/// The setting of a stage whose model servers in its own job answered for: how they were started.
pub(crate) const SERVED_BY: &str = "served_by";

/// Digest of a model's folder as servers announce it, without reading what a record or an earlier run vouches for: the stage that asks them
/// holds its inputs against their records itself.
pub(crate) fn digest_of_model(input: &Path) -> anyhow::Result<String> {
    match digest_of_stage(input) {
        Some(digest) => Ok(digest),
        None => Ok(known::digest(&checked_model(input)?, known::store().as_deref())?),
    }
}

/// A model's name in results: its stage's or its folder's.
pub(crate) fn name_of_model(input: &Path) -> String {
    input.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Starts the peak-memory count of this process anew, where the kernel lets us.
pub(crate) fn reset_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context { seed: 1, threads: 1, dtype: Some(DtypeName::F32), servers: None, cancel: Cancel::default() }
    }

    fn open_partial(kind: &str, out: &Path, decides: &Value) -> anyhow::Result<OutputDir> {
        let (written, used, inputs) = (json!({}), json!({}), Inputs::new());
        let (extra_files, task_files) = (vec![], TaskFiles::new());
        let job = Job { kind, name: "d", written, used, inputs: &inputs, extra_files, task_files, out };
        super::open_partial(&job, decides)
    }

    fn run(out: &Path, input: &Path, value: u32) -> bool {
        let inputs = Inputs::from([("data".to_owned(), vec![input.to_path_buf()])]);
        let used = json!({ "value": value });
        let job = Job {
            kind: "data",
            name: "d",
            written: used.clone(),
            used,
            inputs: &inputs,
            extra_files: vec![],
            task_files: TaskFiles::new(),
            out,
        };
        let done = execute(&context(), &job, |folder, _| Ok(std::fs::write(folder.join("x"), value.to_string())?));
        done.unwrap().was_done
    }

    #[test]
    fn a_stage_runs_again_only_when_settings_inputs_or_outputs_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (out, input) = (dir.path().join("stage"), dir.path().join("in.txt"));
        std::fs::write(&input, "a").unwrap();
        assert!(!run(&out, &input, 1));
        assert!(run(&out, &input, 1), "nothing changed");
        assert!(!run(&out, &input, 2), "a setting changed");
        std::fs::write(&input, "b").unwrap();
        assert!(!run(&out, &input, 2), "an input changed");
        std::fs::write(out.join("x"), "damaged").unwrap();
        assert!(!run(&out, &input, 2), "an output was damaged");
        assert!(run(&out, &input, 2));
    }

    /// Both ways from the inputs to the record: by the work, where no result stands there, and before it, to see whether it is done.
    #[test]
    fn a_merge_whose_inputs_are_hashed_with_the_work_is_done_when_it_is_asked_for_again_and_not_when_an_input_changed()
    {
        let dir = tempfile::tempdir().unwrap();
        let (out, input) = (dir.path().join("stage"), dir.path().join("in.txt"));
        std::fs::write(&input, "a").unwrap();
        let inputs = Inputs::from([("models".to_owned(), vec![input.clone()])]);
        let run = || {
            let (written, used) = (json!({}), json!({}));
            let job = Job {
                kind: "merge",
                name: "d",
                written,
                used,
                inputs: &inputs,
                extra_files: vec![],
                task_files: TaskFiles::new(),
                out: &out,
            };
            execute(&context(), &job, |folder, _| Ok(std::fs::write(folder.join("x"), "merged")?))
        };
        let first = run().unwrap();
        assert_eq!((first.was_done, &first.record.inputs["models"]), (false, &json!(digest::bytes(b"a"))));
        let again = run().unwrap();
        assert_eq!((again.was_done, &again.record.fingerprint), (true, &first.record.fingerprint));
        std::fs::write(&input, "b").unwrap();
        let other = run().unwrap();
        assert_eq!((other.was_done, &other.record.inputs["models"]), (false, &json!(digest::bytes(b"b"))));
        std::fs::remove_dir_all(&out).unwrap();
        std::fs::remove_file(&input).unwrap();
        let error = run().err().expect("an input is missing").to_string();
        assert!(error.contains("in.txt does not exist") && !atomic::sibling(&out).exists(), "{error}");
    }

    /// What versions before this one finished has the digest of the whole folder of benchmarks.
    #[test]
    fn an_evaluation_is_done_while_the_files_of_its_tasks_are_the_same_or_the_whole_folder_that_it_named() {
        let dir = tempfile::tempdir().unwrap();
        let (out, data) = (dir.path().join("stage"), dir.path().join("d"));
        std::fs::create_dir(&data).unwrap();
        for name in ["test.jsonl", "README.md"] {
            std::fs::write(data.join(name), "a").unwrap();
        }
        let (inputs, used) = (Inputs::new(), json!({"data": data, "tasks": ["t"]}));
        let was_done = |by_task: bool| {
            let files = if by_task { vec![("t".to_owned(), vec![data.join("test.jsonl")])] } else { vec![] };
            let (written, used, task_files) = (used.clone(), used.clone(), files.into_iter().collect());
            let extra_files = vec![data.clone()];
            let job =
                Job { kind: "eval", name: "e", written, used, inputs: &inputs, extra_files, task_files, out: &out };
            let done = execute(&context(), &job, |folder, _| Ok(std::fs::write(folder.join("x"), "1")?)).unwrap();
            (done.was_done, done.record.inputs)
        };
        assert!(!was_done(false).0);
        assert!(was_done(true).0, "an earlier version's");
        std::fs::write(data.join("README.md"), "b").unwrap();
        let (is_done, inputs) = was_done(true);
        let file = data.join("test.jsonl").display().to_string();
        assert_eq!(Value::from(inputs), json!({"task_files": {"t": {file: digest::bytes(b"a")}}}));
        assert!(!is_done && was_done(true).0);
        std::fs::write(data.join("README.md"), "c").unwrap();
        assert!(was_done(true).0);
        std::fs::write(data.join("test.jsonl"), "b").unwrap();
        assert!(!was_done(true).0);
    }

    #[test]
    fn an_unfinished_evaluation_is_joined_by_other_tasks_and_not_where_a_file_of_both_is_another() {
        let decides = |strategy: &str, files: Value| json!({"config": {"strategy": strategy}, "inputs": {"model": "m", "task_files": files}});
        let (a, b) = (json!({"a": {"d/a": "1"}}), json!({"b": {"d/b": "2"}}));
        let both = json!({"a": {"d/a": "1"}, "b": {"d/b": "2"}});
        let check = |earlier: &Value, now: &Value| {
            with_other_tasks("eval", &decides("cot", earlier.clone()), &decides("cot", now.clone()))
        };
        assert_eq!(check(&a, &b), Some(decides("cot", both.clone())));
        assert_eq!(check(&both, &a), Some(decides("cot", both.clone())), "those of the first run stay");
        assert_eq!(check(&both, &json!({"a": {"d/a": "3"}})), None);
        assert_eq!(check(&both, &json!({"a": {"d/a": "1", "d/c": "4"}})), None);
        assert_eq!(with_other_tasks("eval", &decides("cot", a.clone()), &decides("sc-cot", a.clone())), None);
        assert_eq!(with_other_tasks("eval", &decides("open", a.clone()), &decides("open", b.clone())), None);
        assert_eq!(with_other_tasks("eval", &json!({"inputs": {"file 1": "1"}}), &decides("cot", a.clone())), None);
        let other = json!({"a": {"d/a": "3"}, "c": {"d/c": "5"}});
        let words = differences("", &decides("cot", both), &decides("cot", other));
        assert_eq!(words, ["the input `d/a` has other content"]);
        let paths = [&PathBuf::from("t"), &PathBuf::from("x.jsonl")];
        assert_eq!(with_path("the input `file 2` has".into(), &paths), "the input `x.jsonl` has");
    }

    /// A kill may come after the folder has its name and before its working files are gone.
    #[test]
    fn working_files_that_a_kill_left_in_a_finished_folder_go_at_the_next_run_and_other_hidden_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (out, input) = (dir.path().join("stage"), dir.path().join("in.txt"));
        std::fs::write(&input, "a").unwrap();
        assert!(!run(&out, &input, 1));
        let hidden = || {
            let names =
                std::fs::read_dir(&out).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
            let mut names: Vec<String> = names.filter(|name| name.starts_with('.')).collect();
            names.sort();
            names
        };
        assert_eq!(hidden(), [""; 0]);
        std::fs::write(out.join(".gitattributes"), "the user's").unwrap();
        assert!(run(&out, &input, 1));
        assert_eq!(hidden(), [".gitattributes"], "no mark: no kill left it");
        std::fs::remove_file(out.join(".gitattributes")).unwrap();
        for name in [".answers.log", MARK, SESSION] {
            std::fs::write(out.join(name), "left").unwrap();
        }
        assert!(run(&out, &input, 1), "the outputs are whole");
        assert_eq!(hidden(), [""; 0]);
    }

    /// The second stage read the first one's folder; whoever overwrites a file in it must not be told that nothing changed.
    #[test]
    fn an_input_folder_that_is_not_what_its_record_says_is_refused_by_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let (input, first, second) = (dir.path().join("in.txt"), dir.path().join("first"), dir.path().join("second"));
        std::fs::write(&input, "a").unwrap();
        assert!(!run(&first, &input, 1));
        assert!(!run(&second, &first, 2));
        assert!(run(&second, &first, 2), "nothing changed");
        let inputs = Inputs::from([("data".to_owned(), vec![first.clone()])]);
        let used = json!({ "value": 2 });
        let refused = || {
            let (written, used, out) = (used.clone(), used.clone(), second.as_path());
            let job = Job {
                kind: "data",
                name: "d",
                written,
                used,
                inputs: &inputs,
                extra_files: vec![],
                task_files: TaskFiles::new(),
                out,
            };
            let error = execute(&context(), &job, |_, _| Ok(())).err().expect("the changed input is taken");
            assert_eq!(crate::failure::exit_code(&error, 0), 2);
            error.to_string()
        };
        std::fs::write(first.join("x"), "2").unwrap();
        let text = refused();
        assert!(text.contains("first/x is not what the stage wrote") && text.contains("run the stage"), "{text}");
        assert!(text.contains("or give") && text.contains("itself as the input"), "{text}");
        std::fs::write(first.join("x"), "1").unwrap();
        assert!(run(&second, &first, 2), "the bytes are back");
        std::fs::write(first.join("more"), "1").unwrap();
        assert!(refused().contains("first/more was not written by the stage"));
        // Who opens one output alone is not refused for another.
        let opened = |path: &Path| crate::input_digests::check_opened(&first, path).map_err(|error| error.to_string());
        assert_eq!(opened(&first.join("x")), Ok(()));
        assert!(opened(&first).unwrap_err().contains("first/more"));
        std::fs::remove_file(first.join("more")).unwrap();
        std::fs::remove_file(first.join("x")).unwrap();
        assert!(refused().contains("first/x is missing"));
        assert!(opened(&first.join("x/part")).unwrap_err().contains("first/x is missing"));
    }

    #[test]
    fn a_folder_that_is_no_stage_of_this_kind_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("keep");
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("thesis.txt"), "years").unwrap();
        let (inputs, used) = (Inputs::new(), json!({}));
        let job = Job {
            kind: "data",
            name: "d",
            written: used.clone(),
            used,
            inputs: &inputs,
            extra_files: vec![],
            task_files: TaskFiles::new(),
            out: &out,
        };
        assert!(execute(&context(), &job, |_, _| Ok(())).is_err());
        assert_eq!(std::fs::read_to_string(out.join("thesis.txt")).unwrap(), "years");
    }

    #[test]
    fn a_stage_that_would_be_made_anew_keeps_files_that_it_did_not_write() {
        let dir = tempfile::tempdir().unwrap();
        let (out, input) = (dir.path().join("stage"), dir.path().join("in.txt"));
        std::fs::write(&input, "a").unwrap();
        assert!(!run(&out, &input, 1));
        let inputs = Inputs::from([("data".to_owned(), vec![input.clone()])]);
        for name in ["thesis.txt", ".gitattributes"] {
            std::fs::write(out.join(name), "years").unwrap();
            let (written, used) = (json!({"value": 2}), json!({"value": 2}));
            let job = Job {
                kind: "data",
                name: "d",
                written,
                used,
                inputs: &inputs,
                extra_files: vec![],
                task_files: TaskFiles::new(),
                out: &out,
            };
            let error = execute(&context(), &job, |_, _| panic!("it works")).err().expect("the folder is replaced");
            assert_eq!(crate::failure::exit_code(&error, 0), 2);
            assert!(error.to_string().contains(&format!("did not write: {name}")), "{error}");
            assert_eq!(std::fs::read_to_string(out.join("x")).unwrap(), "1");
            std::fs::remove_file(out.join(name)).unwrap();
        }
        assert!(!run(&out, &input, 2));
    }

    #[test]
    fn a_second_process_in_the_same_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("stage");
        let held = Lock::take(&out).unwrap();
        assert!(Lock::take(&out).is_err());
        drop(held);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the lock's file stays");
        Lock::take(&out).unwrap();
    }

    #[test]
    fn a_failed_stage_leaves_no_lock_no_empty_folder_and_only_work_that_can_be_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("runs/x/stage");
        let (inputs, used) = (Inputs::new(), json!({}));
        let fail = |kind: &str, file: &str, text: &str| {
            let job = Job {
                kind,
                name: "d",
                written: used.clone(),
                used: used.clone(),
                inputs: &inputs,
                extra_files: vec![],
                task_files: TaskFiles::new(),
                out: &out,
            };
            let failed = execute(&context(), &job, |folder, _| {
                let path = folder.join(file);
                std::fs::create_dir_all(path.parent().unwrap())?;
                std::fs::write(path, text)?;
                anyhow::bail!("no")
            });
            assert!(failed.is_err());
            out.with_file_name(".stage.partial").exists()
        };
        assert!(!fail("sft", "metrics.jsonl", ""), "nothing was trained");
        assert!(!fail("eval", ".answers.log", ""), "nothing was answered");
        assert!(!fail("data", "train.jsonl", "{}\n"), "a data stage starts over");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "folders made for a failed stage stay");
        assert!(fail("eval", ".answers.log", "01234567 {\"run\":\"x\"}\n01234567 {\"answered\":{}}\n"));
        assert!(fail("sft", "state/step-0000000040/cursor.json", "{}"));
        assert!(!out.with_file_name(".stage.lock").exists());
    }

    #[test]
    fn a_new_program_version_alone_redoes_nothing() {
        let (inputs, used) = (Inputs::new(), json!({}));
        let job = Job {
            kind: "card",
            name: "d",
            written: used.clone(),
            used,
            inputs: &inputs,
            extra_files: vec![],
            task_files: TaskFiles::new(),
            out: Path::new("x"),
        };
        // The digest that version 0.1.0 wrote for this stage, worked out with sha256sum from the JSON text below.
        let text = r#"{"kind":"card","config":{},"inputs":{},"seed":1,"dtype":null,"isa":"x","version":"0.1.0"}"#;
        let found = digest_of_json(&decides(&context(), &job, &Map::new(), "x")).unwrap();
        assert_eq!(found, digest::bytes(text.as_bytes()));
    }

    /// 5 s of earlier sessions and one that started 7 s before its last file: 12 s.
    #[test]
    fn the_seconds_of_interrupted_sessions_count() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("work"), "x").unwrap();
        let last = last_change_unix_s(dir.path());
        std::fs::write(dir.path().join(SESSION), format!("5 {}", last - 7.0)).unwrap();
        let earlier_s = open_session(dir.path()).unwrap();
        assert!((earlier_s - 12.0).abs() < 1.0, "{earlier_s}");
    }

    #[test]
    fn a_partial_folder_of_other_settings_is_not_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("stage");
        let first = open_partial("data", &out, &json!("one")).unwrap();
        std::fs::write(first.path().join("half"), "x").unwrap();
        assert!(open_partial("data", &out, &json!("one")).unwrap().path().join("half").exists());
        assert!(!open_partial("data", &out, &json!("two")).unwrap().path().join("half").exists());
    }

    /// More points are the same search; another seed is another one, whose seconds start at none, and the log stays for both.
    #[test]
    fn a_search_of_other_settings_keeps_the_log_and_not_the_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("stage");
        let of = |seed: u64, evaluations: usize, space: &str| {
            let config = json!({"yaml": "y", "space": space, "search": {"method": "grid", "evaluations": evaluations}});
            resumable(
                "merge-search",
                json!({"kind": "merge-search", "config": config, "inputs": {"m": "1"}, "seed": seed}),
            )
        };
        assert_eq!(of(1, 9, "a"), of(1, 12, "b"));
        let first = open_partial("merge-search", &out, &of(1, 9, "a")).unwrap();
        for name in [SESSION, leave::POINTS] {
            std::fs::write(first.path().join(name), "5 5").unwrap();
        }
        let there = |seed: u64| {
            let folder = open_partial("merge-search", &out, &of(seed, 9, "a")).unwrap();
            [SESSION, leave::POINTS].map(|name| folder.path().join(name).exists())
        };
        assert_eq!(there(1), [true, true]);
        assert_eq!(there(2), [false, true]);
        assert_eq!(there(2), [false, true]);
    }

    /// The logs say themselves what they are of; another learning rate changes none of their numbers.
    #[test]
    fn a_reference_that_was_begun_survives_other_settings_and_nothing_else_of_the_earlier_run_does() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("stage");
        let of = |lr: f64| resumable("dpo", json!({"kind": "dpo", "config": {"lr": lr}, "inputs": {}, "seed": 1}));
        let partial = open_partial("dpo", &out, &of(0.1)).unwrap().path().to_path_buf();
        let others = ["metrics.jsonl", SESSION, "state/reference-chunk-0.log", "state/damaged-0000000040/cursor.json"];
        for name in leave::REFERENCES.map(|name| format!("state/{name}")).iter().map(String::as_str).chain(others) {
            std::fs::create_dir_all(partial.join(name).parent().unwrap()).unwrap();
            std::fs::write(partial.join(name), name).unwrap();
        }
        open_partial("dpo", &out, &of(0.2)).unwrap();
        for name in leave::REFERENCES.map(|name| format!("state/{name}")) {
            assert_eq!(std::fs::read_to_string(partial.join(&name)).unwrap(), name);
        }
        assert_eq!(replaced::files_below(&partial).len(), 2, "{:?}", replaced::files_below(&partial));
        assert!(others.iter().all(|name| !partial.join(name).exists()));
        assert_eq!(atomic::read_json::<Value>(&partial.join(DECIDES)).unwrap(), of(0.2));
        // With a checkpoint there is more to lose.
        std::fs::create_dir(partial.join("state/step-0000000003")).unwrap();
        assert!(open_partial("dpo", &out, &of(0.1)).is_err());
        assert!(partial.join("state/reference.log").exists());
    }

    #[test]
    fn a_training_of_updates_beside_bf16_weights_is_made_anew_where_those_were_rounded_otherwise() {
        for (kind, config, expected) in [
            ("sft", json!({"dtype": "bf16", "lora": {"base": "dense"}}), true),
            ("dpo", json!({"dtype": "bf16", "lora": {"base": "dense"}}), true),
            ("dpo", json!({"dtype": "bf16", "lora": {"base": "q8"}}), false),
            ("sft", json!({"dtype": "f32", "lora": {"base": "dense"}}), false),
            ("sft", json!({"dtype": "bf16", "lora": null}), false),
            ("eval", json!({}), false),
        ] {
            assert_eq!(freezes_bf16(kind, &config), expected, "{kind} {config}");
        }
    }

    #[test]
    fn a_training_that_may_skip_is_made_anew_where_skips_were_others_and_an_unfinished_one_goes_on() {
        for (kind, config, expected) in [
            ("sft", json!({"on_nonfinite": "skip", "on_spike": "stop"}), true),
            ("dpo", json!({"on_nonfinite": "stop", "on_spike": "skip"}), true),
            ("sft", json!({"on_nonfinite": "stop", "on_spike": "keep"}), false),
            ("eval", json!({"on_spike": "skip"}), false),
        ] {
            assert_eq!(may_skip(kind, &config), expected, "{kind} {config}");
        }
        let of = |policy: &str| json!({"kind": "sft", "config": {"lr": 1, "on_spike": policy}});
        let mut skipping = of("skip");
        skipping[SKIPS] = SKIPS_SINCE.into();
        assert_eq!(resumable("sft", skipping), resumable("sft", of("stop")));
    }

    #[test]
    fn a_training_with_checkpoints_is_never_started_over_by_other_settings_and_says_which_differ() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("stage");
        let of = |lr: f64, save: u64, data: &str| {
            let config = json!({"lr": lr, "max_len": 64, "checkpoint_every": save});
            resumable("sft", json!({"kind": "sft", "config": config, "inputs": {"data": data}, "seed": 1}))
        };
        open_partial("sft", &out, &of(0.1, 5, "a")).unwrap();
        // Without a checkpoint nothing is lost by starting over.
        open_partial("sft", &out, &of(0.2, 5, "a")).unwrap();
        let checkpoint = out.with_file_name(".stage.partial").join("state/step-0000000040");
        std::fs::create_dir_all(&checkpoint).unwrap();
        let error = open_partial("sft", &out, &of(0.1, 5, "b")).err().unwrap();
        let text = error.to_string();
        assert_eq!(crate::failure::exit_code(&error, 0), 2);
        for part in ["lr was 0.2, is now 0.1", "the input `data` has other content", "goes on after step 40"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("max_len") && checkpoint.exists(), "{text}");
        open_partial("sft", &out, &of(0.2, 9, "a")).unwrap();
        assert!(checkpoint.exists());
    }
}
