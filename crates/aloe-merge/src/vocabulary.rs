//! The vocabulary of the result when the configuration names one, and where each row of the embedding comes from.
//!
//! Source: mergekit 0.1.5, `tokenizer/build.py` and `tokenizer/embed.py`. Tokens of a union that the base lacks are appended in the order of
//! the configuration and of their ids (there the order is that of a hash table): plain tokens first, then added ones. Rows of a model that
//! lacks a token: the one model's that has it, else the base's, else the mean of those that have it, else zeros. A token whose id lies past
//! the embedding counts as lacking. A token new to all (`tokens:`) takes its stated row in every model; mergekit, with `source: base`, lets the
//! base keep whatever spare row stands there.

use crate::config::{MergeConfig, TokenRow, TokenRule, TokenizerChoice, TokenizerSource};
use crate::inputs::PlannedModel;
use crate::tokenizer_file::TokenizerFile;
use crate::{Error, Mistake, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a row of one input comes from.
#[derive(Debug, PartialEq)]
pub(crate) enum Row<'a> {
    /// From this row of the input itself.
    Own(usize),
    /// From a row of another input.
    Of(usize, usize),
    /// Zeros.
    Zero,
    /// The row that pads the vocabulary.
    Padding,
    /// The mean of rows of inputs.
    Average(&'a [(usize, usize)]),
}

/// A row that is not an input's own.
#[derive(Clone, Debug, PartialEq)]
enum Donor {
    Of(usize, usize),
    Zero,
    Average(Vec<(usize, usize)>),
}

const NONE: u32 = u32::MAX;

/// The rows of the embedding for the inputs of one slice.
pub(crate) struct RowMap {
    /// Rows with a token; the rest pads.
    n_tokens: usize,
    /// Rows in all.
    pub(crate) n_rows: usize,
    /// Per input and row, the input's own row, or none.
    own: Vec<Vec<u32>>,
    /// Rows that some input takes from elsewhere.
    donors: BTreeMap<u32, Donor>,
    /// Rows that every input takes from the donor.
    forced: Vec<bool>,
}

impl RowMap {
    /// Where row `row` of the `input`-th source comes from.
    pub(crate) fn row(&self, input: usize, row: usize) -> Row<'_> {
        if row >= self.n_tokens {
            return Row::Padding;
        }
        let own = self.own[input][row];
        if own != NONE && !self.forced[row] {
            return Row::Own(own as usize);
        }
        match self.donors.get(&(row as u32)) {
            Some(Donor::Of(input, at)) => Row::Of(*input, *at),
            Some(Donor::Average(rows)) => Row::Average(rows),
            Some(Donor::Zero) | None => Row::Zero,
        }
    }

    /// Whether every row of an input of `n_rows` stays where it is.
    pub(crate) fn is_identity(&self, input: usize, n_rows: usize) -> bool {
        let stays = |(row, own): (usize, &u32)| *own as usize == row && !self.forced[row];
        n_rows == self.n_rows && self.n_tokens == self.n_rows && self.own[input].iter().enumerate().all(stays)
    }

    pub(crate) fn needs_padding(&self) -> bool {
        self.n_rows > self.n_tokens
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Bytes that it holds; a place in the tree counts as what it takes at most.
    pub(crate) fn size_bytes(&self) -> u64 {
        let of_donor = |donor: &Donor| match donor {
            Donor::Average(rows) => 96 + 16 * rows.len(),
            Donor::Of(..) | Donor::Zero => 96,
        };
        let donors: usize = self.donors.values().map(of_donor).sum();
        (self.own.iter().map(|rows| 4 * rows.len()).sum::<usize>() + self.forced.len() + donors) as u64
    }
}

/// The result's vocabulary.
pub(crate) struct Vocabulary {
    /// Index of the model whose files the tokenizer's other files come from.
    pub(crate) donor: usize,
    /// The result's `tokenizer.json` where it is not the donor's, and the tokens that were appended.
    pub(crate) file: TokenizerFile,
    /// Token by id.
    tokens: BTreeMap<u32, String>,
    /// Per model of the configuration, the id in that model of each token that it has.
    ids: Vec<BTreeMap<String, u32>>,
    /// Rows of the result.
    pub(crate) n_rows: usize,
    /// Token by id in the leading model, those of ids past its embedding too.
    leading: BTreeMap<u32, String>,
}

/// Builds the vocabulary that a configuration asks for; none where it names none.
pub(crate) fn build(
    config: &MergeConfig,
    models: &[PlannedModel],
    notes: &mut Vec<String>,
) -> Result<Option<Vocabulary>> {
    let Some(choice) = &config.tokenizer else { return Ok(None) };
    check_rows(config, choice, models)?;
    let leader = config.base.unwrap_or(0);
    let donor = match choice.source {
        TokenizerSource::Model(index) => index,
        TokenizerSource::Base | TokenizerSource::Union => leader,
    };
    let open = |index: usize| -> Result<Option<TokenizerFile>> { TokenizerFile::open(&models[index].beside) };
    let missing =
        |index: usize| Error::model(&models[index].name, "has no tokenizer.json: its tokenizer cannot be used");
    let mut leading = open(leader)?.ok_or_else(|| missing(leader))?;
    let of_leader = leading.tokens();
    if donor == leader {
        notes.extend(note_past(&models[leader], &leading));
    }
    leading.strip(models[leader].config.vocab_size);
    let mut files = Vec::new();
    for (index, model) in models.iter().enumerate() {
        let file = if index == leader { None } else { open(index)? };
        // A model without a tokenizer is taken to have the leader's, as in mergekit.
        if index != leader && file.is_none() {
            notes.push(format!(
                "{} has no tokenizer.json: its rows are taken to be in the order of the tokenizer of {}",
                model.name, models[leader].name
            ));
        }
        files.push(file);
    }
    let ids: Vec<BTreeMap<String, u32>> = files
        .iter()
        .zip(models)
        .map(|(file, model)| file.as_ref().unwrap_or(&leading).ids_below(model.config.vocab_size))
        .collect();
    let mut file = match choice.source {
        TokenizerSource::Model(index) if index != leader => files[index].take().ok_or_else(|| missing(index))?,
        _ => leading,
    };
    // A folder with a tokenizer alone has no embedding: its tokens get rows of their own.
    if donor != leader && !models[donor].gives_tokenizer_only() {
        notes.extend(note_past(&models[donor], &file));
        file.strip(models[donor].config.vocab_size);
    }
    if choice.source == TokenizerSource::Union {
        for (model, file) in models.iter().zip(&files) {
            notes.extend(file.as_ref().and_then(|file| note_past(model, file)));
        }
        let others: Vec<(&TokenizerFile, usize)> = files
            .iter()
            .zip(models)
            .filter_map(|(file, model)| file.as_ref().map(|file| (file, model.config.vocab_size)))
            .collect();
        file.unite(&others, notes).map_err(|reason| Error::model(&models[leader].name, reason))?;
    }
    let mut named: Vec<(&String, &TokenRule)> = choice.tokens.iter().collect();
    named.sort_by_key(|(_, rule)| rule.place);
    named.into_iter().for_each(|(token, _)| file.append_named(token, notes));
    file.pin_ids().map_err(|reason| Error::model(&models[donor].name, reason))?;
    let tokens = file.tokens();
    let n_tokens = tokens.keys().next_back().map_or(0, |last| *last as usize + 1);
    let multiple = choice.pad_to_multiple_of.unwrap_or(1);
    let n_rows = n_tokens.next_multiple_of(multiple);
    Ok(Some(Vocabulary { donor, file, tokens, ids, n_rows, leading: of_leader }))
}

/// Tokens that take part nowhere: their ids lie past the model's embedding.
pub(crate) fn note_past(model: &PlannedModel, file: &TokenizerFile) -> Option<String> {
    let (n_rows, past) = (model.config.vocab_size, file.past(model.config.vocab_size));
    let shown: Vec<String> = past.iter().take(5).map(|(id, token)| format!("{token:?} with id {id}")).collect();
    let more =
        if past.len() > shown.len() { format!(", and {} more", past.len() - shown.len()) } else { String::new() };
    (!past.is_empty()).then(|| {
        format!(
            "the tokenizer of {} has {} past the {n_rows} rows of its embedding: {}{more}; no row belongs to {}, and the result's \
             tokenizer does not take {} over",
            model.name,
            tokens(past.len()),
            shown.join(", "),
            if past.len() == 1 { "it" } else { "them" },
            if past.len() == 1 { "it" } else { "them" },
        )
    })
}

/// Refuses rows by number (`token_id`) that a model's embedding does not have: what would be read there is another tensor.
fn check_rows(config: &MergeConfig, choice: &TokenizerChoice, models: &[PlannedModel]) -> Result<()> {
    let mut mistakes = Vec::new();
    for (token, rule) in &choice.tokens {
        if let Some(TokenRow::Id(model, row)) = rule.source
            && row >= models[model].config.vocab_size
        {
            let (name, n_rows) = (&models[model].name, models[model].config.vocab_size);
            let text = format!("token_id {row} as the source of {token:?}: the embedding of {name} has {n_rows} rows");
            mistakes.push(Mistake { line: rule.line, text });
        }
    }
    match mistakes.is_empty() {
        true => Ok(()),
        false => Err(Error::Config { path: config.path.clone(), mistakes }),
    }
}

impl Vocabulary {
    /// The rows for a slice's sources, given as model indices; `base` is an index of `sources`.
    pub(crate) fn rows(
        &self,
        config: &MergeConfig,
        sources: &[usize],
        base: Option<usize>,
    ) -> Result<Arc<RowMap>, Mistake> {
        let n_tokens = self.tokens.keys().next_back().map_or(0, |last| *last as usize + 1);
        let mut map = RowMap {
            n_tokens,
            n_rows: self.n_rows,
            own: vec![vec![NONE; n_tokens]; sources.len()],
            donors: BTreeMap::new(),
            forced: vec![false; n_tokens],
        };
        for (id, token) in &self.tokens {
            let has: Vec<(usize, usize)> = sources
                .iter()
                .enumerate()
                .filter_map(|(input, model)| self.ids[*model].get(token).map(|own| (input, *own as usize)))
                .collect();
            has.iter().for_each(|(input, own)| map.own[*input][*id as usize] = *own as u32);
            let rule = config.tokenizer.as_ref().and_then(|choice| rule_of(choice, token));
            let force = rule.as_ref().is_some_and(|rule| rule.1);
            if has.len() == sources.len() && !force {
                continue;
            }
            map.forced[*id as usize] = force;
            let donor = match rule.and_then(|rule| rule.0) {
                Some((line, row)) => self.ruled(config, sources, token, line, row)?,
                None => match (&has[..], base.and_then(|base| has.iter().find(|(input, _)| *input == base))) {
                    ([], _) => Donor::Zero,
                    ([only], _) => Donor::Of(only.0, only.1),
                    (_, Some(of_base)) => Donor::Of(of_base.0, of_base.1),
                    _ => Donor::Average(has),
                },
            };
            map.donors.insert(*id, donor);
        }
        Ok(Arc::new(map))
    }

    /// The row that a rule of the configuration names.
    fn ruled(
        &self,
        config: &MergeConfig,
        sources: &[usize],
        token: &str,
        line: usize,
        row: &TokenRow,
    ) -> Result<Donor, Mistake> {
        let input = |model: usize| {
            sources.iter().position(|source| *source == model).ok_or_else(|| Mistake {
                line,
                text: format!(
                    "the row of {token:?} comes from {}, which this slice does not merge",
                    config.models[model].name
                ),
            })
        };
        let id = |model: usize, wanted: &str| {
            self.ids[model].get(wanted).map(|id| *id as usize).ok_or_else(|| Mistake {
                line,
                text: format!("{} has no token {wanted:?} to take a row from", config.models[model].name),
            })
        };
        match row {
            TokenRow::Zero => Ok(Donor::Zero),
            TokenRow::Same(model) => Ok(Donor::Of(input(*model)?, id(*model, token)?)),
            TokenRow::Token(model, wanted) => Ok(Donor::Of(input(*model)?, id(*model, wanted)?)),
            TokenRow::Id(model, row) => Ok(Donor::Of(input(*model)?, *row)),
        }
    }

    /// How many tokens a model of the configuration has.
    pub(crate) fn n_tokens_of(&self, model: usize) -> usize {
        self.ids[model].len()
    }

    /// The id of a token in the result.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.tokens.iter().find(|(_, known)| *known == token).map(|(id, _)| *id)
    }

    /// The id in the result of the token that the leading model has under `id`.
    pub(crate) fn moved(&self, id: u32) -> Option<u32> {
        self.id(self.leading.get(&id)?)
    }

    /// Which rows models take from each other, and which are zeros because no model of the slice has the token: the first slice gives the
    /// embedding, the last one the head.
    pub(crate) fn row_notes(&self, config: &MergeConfig, maps: &[Arc<RowMap>; 2], tied: bool) -> Vec<String> {
        let mut notes = Vec::new();
        let last = config.slices.len() - 1;
        let matrices = [("embedding", 0, &maps[0]), ("head", last, &maps[1])];
        for (what, at, map) in matrices.into_iter().take(if tied { 1 } else { 2 }) {
            let of_slice = if last == 0 { "" } else { " of its slice" };
            for (input, source) in config.slices[at].sources.iter().enumerate() {
                let is_borrowed = |id: u32| matches!(map.row(input, id as usize), Row::Of(from, _) if from != input);
                let is_mean = |id: u32| matches!(map.row(input, id as usize), Row::Average(_));
                let borrowed = self.tokens.iter().filter(|(id, token)| {
                    !self.ids[source.model].contains_key(*token) && (is_borrowed(**id) || is_mean(**id))
                });
                let borrowed: Vec<&str> = borrowed.map(|(_, token)| token.as_str()).collect();
                if let Some(first) = borrowed.first() {
                    let note = format!(
                        "{} has no row for {} of the result ({}), which it takes from other models{of_slice}",
                        config.models[source.model].name,
                        tokens(borrowed.len()),
                        some(first, borrowed.len()),
                    );
                    // The same words for the head.
                    if !notes.contains(&note) {
                        notes.push(note);
                    }
                }
            }
            let is_asked = |token: &str| {
                let rule = config.tokenizer.as_ref().and_then(|choice| choice.tokens.get(token));
                rule.is_some_and(|rule| rule.source == Some(TokenRow::Zero))
            };
            let is_zero = |id: &u32| matches!(map.donors.get(id), Some(Donor::Zero));
            let zero = self.tokens.iter().filter(|(id, token)| is_zero(id) && !is_asked(token));
            let zero: Vec<&str> = zero.map(|(_, token)| token.as_str()).collect();
            if let Some(first) = zero.first() {
                let slice = if last == 0 { String::new() } else { format!(" of slice {}", at + 1) };
                notes.push(format!(
                    "no model{slice} has {} of the result ({}): the {what} has zeros there",
                    tokens(zero.len()),
                    some(first, zero.len()),
                ));
            }
        }
        notes
    }
}

fn tokens(n: usize) -> String {
    format!("{n} token{}", if n == 1 { "" } else { "s" })
}

/// The first of `n` tokens.
fn some(first: &str, n: usize) -> String {
    format!("{first:?}{}", if n == 1 { "" } else { ", ..." })
}

type Rule<'a> = (Option<(usize, &'a TokenRow)>, bool);

fn rule_of<'a>(choice: &'a TokenizerChoice, token: &str) -> Option<Rule<'a>> {
    choice.tokens.get(token).map(|rule| (rule.source.as_ref().map(|row| (rule.line, row)), rule.force))
}
