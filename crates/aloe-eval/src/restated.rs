//! What a finished run is held against afterwards, without asking a model: rows that its model was trained on, and accuracies that were
//! expected of it. Walk: `aloe rescore` reads the stored answers (`rescore`) and then comes here.

use crate::eval::trained_words;
use crate::rescore::Rescored;
use crate::{AskedQuestion, Error, Result, Sample, parts};
use aloe_record::{Cancel, Progress};
use aloe_task::Question;
use std::collections::HashMap;
use std::path::PathBuf;

impl Rescored {
    /// Scores the questions apart that a row of `files` (`train.jsonl` of data stages) holds; those that the run found in other rows stay so.
    pub fn trained_on(&mut self, asked: &[AskedQuestion], files: &[PathBuf], cancel: &Cancel) -> Result<()> {
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        for task in &mut self.results.tasks {
            let of_task = asked.iter().filter(|one| one.task == task.task);
            let questions: Vec<Question> = of_task.map(question).collect();
            let found = aloe_data::trained_on(&questions, files, n_threads, &Progress::silent(), cancel)?;
            let rows =
                questions.iter().zip(found).filter_map(|(one, row)| Some((one.id.as_str(), trained_words(&row?))));
            let rows: HashMap<&str, String> = rows.collect();
            for sample in self.samples.iter_mut().filter(|sample| sample.task == task.task) {
                let row = || rows.get(sample.id.as_str()).cloned();
                sample.trained = sample.trained.take().or_else(row);
            }
            let of_task = self.samples.iter().filter(|sample| sample.task == task.task);
            let samples: Vec<Sample> = of_task.cloned().collect();
            let is_whole = !task.by_training.iter().any(|part| part.part.starts_with("unknown"));
            task.by_training = parts::by_training(&samples, is_whole);
        }
        Ok(())
    }

    /// Holds the accuracies against what was `expected`: name, lowest and highest in percent. An expectation of the run stays where no other is
    /// given for the same name. Refuses a name that no task and no average of the run has.
    pub fn expect(&mut self, expected: &[(String, f64, f64)]) -> Result<()> {
        let is_new = |name: &str| expected.iter().all(|(known, ..)| known != name);
        let stays = self.results.expected.iter().filter(|one| is_new(&one.name));
        let stays: Vec<_> = stays.map(|one| (one.name.clone(), one.low, one.high)).collect();
        self.results.regroup(&[&stays[..], expected].concat());
        match expected.iter().find(|(name, ..)| self.results.expected.iter().all(|one| one.name != *name)) {
            Some((name, ..)) => {
                Err(Error::Config(format!("expected of {name}: no task or average of the run has that name")))
            }
            None => Ok(()),
        }
    }
}

fn question(asked: &AskedQuestion) -> Question {
    Question {
        id: asked.id.clone(),
        stem: asked.stem.clone(),
        context: asked.context.clone(),
        choices: asked.choices.clone(),
        key: asked.key,
        subject: asked.subject.clone(),
        explanation: None,
        source: String::new(),
    }
}
