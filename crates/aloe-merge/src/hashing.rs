//! SHA-256 of the files of a merge from the very bytes that are read and written for it: no file is read once more for its digest.
//!
//! A digest needs a file's bytes in their order. A thread notes what it reads of the tensor that the file's digest has come to ([`HashedFile::wants`],
//! [`hold`]), and when its tiles are merged it hands all of them over ([`deliver`]): what follows on what was hashed is hashed, by whichever thread
//! has the file's lock, several files side by side; what comes too early waits, within a bound. After each tensor
//! ([`Hashing::end`]) what nobody brought is read from the file: the header, tensors that no output needs, and tensors that stand in the file in another
//! order than they are merged in.
//!
//! What was hashed is told to [`aloe_record::hashed`] when the merge is done, and for no file that changed meanwhile: such a merge is refused.

use crate::inputs::PlannedModel;
use crate::plan::{MergeOptions, MergePlan};
use crate::tile::run;
use crate::{Error, Result, memory};
use aloe_model::writer::TensorPlace;
use aloe_record::hashed;
use aloe_record::stamp::Stamp;
use aloe_tensor::Sha256;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// Bytes read at once where nobody brings them: with those of a second file they lie in the second-level cache.
const PIECE: usize = 1 << 17;
/// A stretch of fewer bytes is read by the thread that finds it, a longer one beside those of other files.
const SHORT: u64 = 1 << 20;
/// How often, and how long, a thread waits for one that is behind before it drops what it brought.
const WAITS: (usize, Duration) = (1000, Duration::from_micros(100));

/// Bytes of a file that one of several threads hashes before it merges on: what waits beyond them is for the next that comes by, so that none
/// is still hashing when the others have merged a tensor.
const HASHED_TOGETHER: usize = 1 << 20;

/// Bytes of a file, from a place on.
struct Piece {
    at: u64,
    bytes: Arc<Vec<u8>>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

/// A file whose digest grows with what is read or written of it.
pub(crate) struct HashedFile {
    path: PathBuf,
    file: File,
    /// What an input must still be in the end.
    before: Option<Stamp>,
    /// How far it is hashed: [`Order::sha`] without its lock.
    at: AtomicU64,
    /// Up to here bytes are wanted; below [`Self::at`] where none are.
    wanted_to: AtomicU64,
    /// Bytes that wait, in `brought` or in [`Order::waiting`], and how many may.
    n_waiting: AtomicUsize,
    most_waiting: usize,
    brought: Mutex<Vec<Piece>>,
    order: Mutex<Order>,
}

/// What has been hashed and what comes next.
struct Order {
    sha: Sha256,
    /// By where they begin.
    waiting: BTreeMap<u64, Arc<Vec<u8>>>,
    /// Where each tensor that will be brought stands, by where it begins; taken out when it was.
    expected: BTreeMap<u64, u64>,
    n_bytes: u64,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HashedFile {
    /// A file of `n_bytes`, of which the stretches `expected` will be brought.
    fn new(path: &Path, n_bytes: u64, most_waiting: usize, before: Option<Stamp>) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let order = Order { sha: Sha256::default(), waiting: BTreeMap::new(), expected: BTreeMap::new(), n_bytes };
        Ok(Self {
            path: path.to_path_buf(),
            file,
            before,
            at: AtomicU64::new(0),
            wanted_to: AtomicU64::new(0),
            n_waiting: AtomicUsize::new(0),
            most_waiting,
            brought: Mutex::default(),
            order: Mutex::new(order),
        })
    }

    /// Whether these bytes are of the tensor that the digest has come to, and not hashed yet.
    pub(crate) fn wants(&self, bytes: &Range<u64>) -> bool {
        bytes.end <= self.wanted_to.load(Ordering::Relaxed) && bytes.end > self.at.load(Ordering::Relaxed)
    }

    /// A tensor's bytes will be brought.
    fn expect(&self, tensor: &Range<u64>) {
        locked(&self.order).expected.insert(tensor.start, tensor.end);
    }

    /// Opens the file for a tensor's bytes, if they are what comes next.
    fn begin(&self, tensor: &Range<u64>) {
        let order = locked(&self.order);
        self.wanted_to.store(if order.covered() == tensor.start { tensor.end } else { 0 }, Ordering::Relaxed);
    }

    /// Hashes what waits, and reads and hashes what stands before the next tensor that will be brought.
    fn catch_up(&self) -> Result<()> {
        let mut open = [(self, locked(&self.order))];
        hash_ready(&mut open, usize::MAX);
        let [(_, order)] = &mut open;
        let mut piece = Vec::new();
        loop {
            let at = order.sha.n_bytes();
            self.at.store(at, Ordering::Relaxed);
            let n_bytes = usize::try_from(order.next_expected() - at).map_or(PIECE, |left| left.min(PIECE));
            if n_bytes == 0 {
                return Ok(());
            }
            piece.resize(n_bytes, 0);
            self.file.read_exact_at(&mut piece, at).map_err(Error::io("read", &self.path))?;
            order.sha.update(&piece);
        }
    }

    /// Takes bytes for their turn.
    fn bring(&self, piece: Piece) {
        self.n_waiting.fetch_add(piece.bytes.len(), Ordering::Relaxed);
        locked(&self.brought).push(piece);
    }

    /// Moves what was brought to where it waits.
    fn take_brought(&self, order: &mut Order) {
        let brought = std::mem::take(&mut *locked(&self.brought));
        brought.into_iter().for_each(|piece| self.wait(order, piece));
    }

    /// Lets a piece wait that is counted as waiting, unless it is known.
    fn wait(&self, order: &mut Order, piece: Piece) {
        let known = order.waiting.get(&piece.at).map_or(0, |known| known.len());
        if piece.end() <= order.sha.n_bytes() || piece.bytes.len() <= known {
            self.n_waiting.fetch_sub(piece.bytes.len(), Ordering::Relaxed);
        } else {
            self.n_waiting.fetch_sub(known, Ordering::Relaxed);
            order.waiting.insert(piece.at, piece.bytes);
        }
    }

    /// The waiting bytes that follow on what was hashed.
    fn next(&self, order: &mut Order) -> Option<Piece> {
        let at = order.sha.n_bytes();
        while let Some(entry) = order.waiting.first_entry().filter(|entry| *entry.key() <= at) {
            let (at_piece, bytes) = entry.remove_entry();
            self.n_waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
            let piece = Piece { at: at_piece, bytes };
            if piece.end() > at {
                return Some(piece);
            }
        }
        None
    }

    /// Gives up what waits: it is read from the file after the tensor.
    fn drop_waiting(&self, order: &mut Order) {
        self.take_brought(order);
        for (_, bytes) in std::mem::take(&mut order.waiting) {
            self.n_waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
    }
}

impl Order {
    /// Where the next tensor begins that will be brought, or the end of the file.
    fn next_expected(&self) -> u64 {
        let at = self.sha.n_bytes();
        self.expected.range(at..).next().map_or(self.n_bytes, |(begin, _)| *begin)
    }

    /// Up to where bytes are hashed or wait without a gap.
    fn covered(&self) -> u64 {
        let follow = |at: u64, (start, bytes): (&u64, &Arc<Vec<u8>>)| match *start <= at {
            true => at.max(start + bytes.len() as u64),
            false => at,
        };
        self.waiting.iter().fold(self.sha.n_bytes(), follow)
    }

    /// Bytes before the next tensor that will be brought which are to be read from the file.
    fn n_behind(&self) -> u64 {
        let at = self.covered();
        self.expected.range(at..).next().map_or(self.n_bytes, |(begin, _)| *begin) - at
    }
}

/// Nothing more is brought of these tensors. Where all of one came, what waits of it is hashed beside the next tensor; else what can be is hashed
/// now and the rest given up, to be read from the file. No other thread is at the files. Returns those of which something waits.
fn end<'a>(places: impl Iterator<Item = &'a Place>) -> Vec<Arc<HashedFile>> {
    let mut open: Vec<(&Arc<HashedFile>, MutexGuard<'_, Order>)> = Vec::new();
    let mut ended: Vec<(usize, &Range<u64>)> = Vec::new();
    for (file, tensor) in places {
        file.wanted_to.store(0, Ordering::Relaxed);
        let at = open.iter().position(|(known, _)| Arc::ptr_eq(known, file)).unwrap_or_else(|| {
            open.push((file, locked(&file.order)));
            open.len() - 1
        });
        ended.push((at, tensor));
    }
    for (file, order) in &mut open {
        file.take_brought(order);
    }
    let mut is_whole = vec![true; open.len()];
    for (at, tensor) in ended {
        let order = &mut open[at].1;
        is_whole[at] &= order.covered() >= tensor.end;
        order.expected.remove(&tensor.start);
    }
    let (mut carried, mut behind) = (Vec::new(), Vec::new());
    for ((file, order), is_whole) in open.into_iter().zip(is_whole) {
        match is_whole {
            true if order.waiting.is_empty() => {}
            true => carried.push(file.clone()),
            false => behind.push((file.as_ref(), order)),
        }
    }
    hash_ready(&mut behind, usize::MAX);
    for (file, order) in &mut behind {
        file.drop_waiting(order);
    }
    carried
}

/// Hashes what follows on what was hashed of several files side by side, as long as there is something: of each as much as of the one that has
/// least, so that none is left to be hashed alone. Stops when it has hashed `budget` bytes of one; what is left of that.
fn hash_ready(open: &mut [(&HashedFile, MutexGuard<'_, Order>)], mut budget: usize) -> usize {
    let mut next: Vec<Option<Piece>> = open.iter().map(|_| None).collect();
    loop {
        for ((file, order), piece) in open.iter_mut().zip(&mut next) {
            if piece.is_none() {
                file.take_brought(order);
                *piece = file.next(order);
            }
        }
        let left = |order: &Order, piece: &Piece| (piece.end() - order.sha.n_bytes()) as usize;
        let ready = open.iter().zip(&next).filter_map(|((_, order), piece)| Some(left(order, piece.as_ref()?)));
        let Some(n_bytes) = ready.min().map(|n_bytes| n_bytes.min(budget)).filter(|n_bytes| *n_bytes > 0) else {
            break;
        };
        budget -= n_bytes;
        let mut streams: Vec<(&mut Sha256, &[u8])> = Vec::with_capacity(open.len());
        for ((_, order), piece) in open.iter_mut().zip(&next) {
            if let Some(piece) = piece {
                let known = (order.sha.n_bytes() - piece.at) as usize;
                streams.push((&mut order.sha, &piece.bytes[known..known + n_bytes]));
            }
        }
        aloe_tensor::sha256_all(&mut streams);
        for ((file, order), piece) in open.iter().zip(&mut next) {
            file.at.store(order.sha.n_bytes(), Ordering::Relaxed);
            let done = piece.take_if(|piece| piece.end() == order.sha.n_bytes());
            done.and_then(|piece| Arc::into_inner(piece.bytes)).into_iter().for_each(keep_buffer);
        }
    }
    for ((file, order), piece) in open.iter_mut().zip(next) {
        if let Some(piece) = piece {
            file.n_waiting.fetch_add(piece.bytes.len(), Ordering::Relaxed);
            file.wait(order, piece);
        }
    }
    budget
}

/// [`hash_ready`] of the files that no other thread is at; one that is takes what was brought meanwhile.
fn try_hash(files: &[&HashedFile], mut budget: usize) {
    while budget > 0 {
        let mut open = Vec::with_capacity(files.len());
        for file in files {
            match file.order.try_lock() {
                Ok(order) => open.push((*file, order)),
                Err(TryLockError::Poisoned(order)) => open.push((*file, order.into_inner())),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        budget = hash_ready(&mut open, budget);
        let locked_now: Vec<&HashedFile> = open.iter().map(|(file, _)| *file).collect();
        drop(open);
        // What was brought between the last look and the unlocking.
        if locked_now.iter().all(|file| locked(&file.brought).is_empty()) {
            return;
        }
    }
}

/// What a thread has read, with its file.
type Held = (Arc<HashedFile>, Piece);

thread_local! {
    /// What this thread has read and not delivered yet.
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
}

/// Buffers to read and write into, so that none is zeroed for every use: one thread reads into them, another hashes them.
static BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Buffers that are kept, and the bytes of the largest of them.
const MOST_BUFFERS: (usize, usize) = (64, 1 << 18);

/// Takes a buffer back that [`buffer`] gave.
pub(crate) fn keep_buffer(buffer: Vec<u8>) {
    let mut buffers = locked(&BUFFERS);
    if buffers.len() < MOST_BUFFERS.0 && buffer.len() <= MOST_BUFFERS.1 {
        buffers.push(buffer);
    }
}

/// A buffer of that length with any content.
pub(crate) fn buffer(n_bytes: usize) -> Vec<u8> {
    let mut buffers = locked(&BUFFERS);
    match buffers.iter().rposition(|buffer| buffer.len() == n_bytes) {
        Some(at) => buffers.swap_remove(at),
        // One of another length makes room, so that the kept ones are those that are asked for.
        None => {
            buffers.pop();
            drop(buffers);
            vec![0; n_bytes]
        }
    }
}

/// Keeps what was read of a file from `at` on for [`deliver`].
pub(crate) fn hold(file: &Arc<HashedFile>, at: u64, bytes: Vec<u8>) {
    HELD.with_borrow_mut(|held| {
        let of_file = || held.iter().filter(|(other, _)| Arc::ptr_eq(other, file)).map(|(_, piece)| piece);
        let is_known = of_file().any(|piece| piece.at == at && piece.bytes.len() >= bytes.len());
        let n_held: usize = of_file().map(|piece| piece.bytes.len()).sum();
        match is_known || n_held > file.most_waiting {
            true => keep_buffer(bytes),
            false => held.push((file.clone(), Piece { at, bytes: Arc::new(bytes) })),
        }
    });
}

/// Hands over what this thread has read, and bytes of outputs beside it; one of `threads` threads. With many threads each hashes few files,
/// so that different threads hash different ones.
pub(crate) fn deliver(threads: usize, outputs: Vec<(Arc<HashedFile>, u64, Arc<Vec<u8>>)>) {
    let mut held = HELD.take();
    held.extend(outputs.into_iter().map(|(file, at, bytes)| (file, Piece { at, bytes })));
    let mut files: Vec<Arc<HashedFile>> = Vec::new();
    for (file, piece) in held {
        file.bring(piece);
        if !files.iter().any(|known| Arc::ptr_eq(known, &file)) {
            files.push(file);
        }
    }
    let files: Vec<&HashedFile> = files.iter().map(Arc::as_ref).collect();
    let budget = if threads <= 1 { usize::MAX } else { HASHED_TOGETHER };
    files.chunks((8 / threads.max(1)).clamp(1, 4)).for_each(|files| try_hash(files, budget));
    keep_bounds(&files, budget);
}

/// Waits until of no file more waits than may, for a while; then the rest of the tensor is left to [`HashedFile::catch_up`].
fn keep_bounds(files: &[&HashedFile], budget: usize) {
    let is_over = |file: &&&HashedFile| file.n_waiting.load(Ordering::Relaxed) > file.most_waiting;
    for _ in 0..WAITS.0 {
        let Some(file) = files.iter().find(is_over) else { return };
        let before = file.n_waiting.load(Ordering::Relaxed);
        // Who is at it stops soon.
        drop(locked(&file.order));
        try_hash(files, budget);
        if file.n_waiting.load(Ordering::Relaxed) >= before {
            std::thread::sleep(WAITS.1);
        }
    }
    for file in files.iter().filter(is_over) {
        file.wanted_to.store(0, Ordering::Relaxed);
        file.drop_waiting(&mut locked(&file.order));
    }
}

/// A tensor's bytes in one of the files.
pub(crate) type Place = (Arc<HashedFile>, Range<u64>);

/// The files of one document's merge that are hashed.
#[derive(Default)]
pub(crate) struct Hashing {
    inputs: Vec<Arc<HashedFile>>,
    outputs: Vec<Arc<HashedFile>>,
    threads: usize,
    /// Where each tensor of the plan stands in inputs, source by source.
    read: Vec<Vec<Place>>,
    /// Where it stands in outputs, by its name.
    written: HashMap<String, Vec<Place>>,
    /// Files of the last tensor of which something waits.
    carried: Mutex<Vec<Arc<HashedFile>>>,
}

impl Hashing {
    /// The inputs of a plan whose digests `options` asks for and that nobody has hashed yet, and output files, which are there in their full
    /// length, by the places of their tensors.
    pub(crate) fn of(plan: &MergePlan, options: &MergeOptions, outputs: &[TensorPlace]) -> Result<Self> {
        let most_waiting = memory::WAITING * (plan.threads + 1);
        let mut inputs: HashMap<(u64, u64), Arc<HashedFile>> = HashMap::new();
        for opened in plan.models.iter().flat_map(PlannedModel::opened) {
            let stamp = opened.stamp()?;
            if !options.hash_inputs.contains(&stamp.inode()) || hashed::remembered(&stamp).is_some() {
                continue;
            }
            let hashed = match inputs.get(&stamp.inode()) {
                Some(known) => known.clone(),
                None => {
                    let n_bytes = stamp.n_bytes();
                    Arc::new(HashedFile::new(opened.path(), n_bytes, most_waiting, Some(stamp.clone()))?)
                }
            };
            inputs.insert(stamp.inode(), hashed.clone());
            opened.hash_with(hashed);
        }
        let mut hashing = Self { threads: plan.threads, ..Self::default() };
        for tensor in &plan.tensors {
            let mut places = Vec::new();
            if !inputs.is_empty() {
                plan.sources(tensor)?.iter().for_each(|source| source.places(&mut places));
            }
            places.iter().for_each(|(file, range)| file.expect(range));
            hashing.read.push(places);
        }
        let mut files: HashMap<&Path, Arc<HashedFile>> = HashMap::new();
        for place in outputs {
            let file = match files.get(place.path.as_path()) {
                Some(known) => known.clone(),
                None => {
                    let metadata = place.path.metadata().map_err(Error::io("read", &place.path))?;
                    Arc::new(HashedFile::new(&place.path, metadata.len(), most_waiting, None)?)
                }
            };
            file.expect(&place.bytes);
            hashing.written.entry(place.name.clone()).or_default().push((file.clone(), place.bytes.clone()));
            files.insert(&place.path, file);
        }
        hashing.inputs = inputs.into_values().collect();
        hashing.outputs = files.into_values().collect();
        // The headers.
        hashing.all().try_for_each(|file| file.catch_up())?;
        Ok(hashing)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<HashedFile>> {
        self.inputs.iter().chain(&self.outputs)
    }

    /// The order in which the plan's tensors are best merged: as they stand in the files of most inputs, where inputs are hashed.
    pub(crate) fn order(&self, n_tensors: usize) -> Vec<usize> {
        let n_sources = self.read.iter().map(Vec::len).filter(|n| *n > 0).min().unwrap_or(0);
        let mut orders: Vec<(usize, Vec<usize>)> = Vec::new();
        for source in 0..n_sources {
            let order = self.order_of(source, n_tensors);
            match orders.iter_mut().find(|(_, known)| *known == order) {
                Some((votes, _)) => *votes += 1,
                None => orders.push((1, order)),
            }
        }
        // Of equals the first.
        let best = orders.into_iter().rev().max_by_key(|(votes, _)| *votes);
        best.map_or_else(|| (0..n_tensors).collect(), |(_, order)| order)
    }

    /// File by file as they first appear in the plan, in each by place.
    fn order_of(&self, source: usize, n_tensors: usize) -> Vec<usize> {
        let mut files: Vec<&Arc<HashedFile>> = Vec::new();
        let mut keys = Vec::with_capacity(n_tensors);
        for places in &self.read {
            let key = places.get(source).map(|(file, range)| {
                let known = files.iter().position(|known| Arc::ptr_eq(known, file));
                let at = known.unwrap_or_else(|| {
                    files.push(file);
                    files.len() - 1
                });
                (at, range.start)
            });
            keys.push(key.unwrap_or((usize::MAX, 0)));
        }
        let mut order: Vec<usize> = (0..n_tensors).collect();
        order.sort_by_key(|tensor| keys[*tensor]);
        order
    }

    /// From now on the bytes of a tensor are read and written, in their order. Its outputs: those of [`deliver`]. What still waits of other
    /// files is hashed first, so that no more waits than of the files of one tensor.
    pub(crate) fn begin(&self, tensor: usize, name: &str) -> Vec<Place> {
        let written = self.written.get(name).cloned().unwrap_or_default();
        let is_of_it = |file: &HashedFile| {
            self.read[tensor].iter().chain(&written).any(|(other, _)| std::ptr::eq(other.as_ref(), file))
        };
        let carried = std::mem::take(&mut *locked(&self.carried));
        let others = carried.iter().filter(|file| !is_of_it(file));
        hash_ready(&mut others.map(|file| (file.as_ref(), locked(&file.order))).collect::<Vec<_>>(), usize::MAX);
        self.read[tensor].iter().chain(&written).for_each(|(file, range)| file.begin(range));
        written
    }

    /// The tensor is merged.
    pub(crate) fn end(&self, tensor: usize, name: &str) -> Result<()> {
        HELD.take();
        let (read, written) = (&self.read[tensor], self.written.get(name).map_or(&[][..], Vec::as_slice));
        *locked(&self.carried) = end(read.iter().chain(written));
        let mut behind: Vec<&Arc<HashedFile>> = Vec::new();
        for (file, _) in read {
            let n_behind = locked(&file.order).n_behind();
            match n_behind {
                0 => {}
                short if short < SHORT => file.catch_up()?,
                _ => behind.push(file),
            }
        }
        // What is written in another order than the file's is read when all of it stands.
        run(self.threads, behind, |file| file.catch_up()).map(|_| ())
    }

    /// All tensors are merged: reads what is left of all files.
    pub(crate) fn catch_up(&self) -> Result<()> {
        self.all().for_each(|file| locked(&file.order).expected.clear());
        run(self.threads, self.all().collect(), |file| file.catch_up()).map(|_| ())
    }

    /// Tells the digests; the outputs are closed. Refuses an input that was changed meanwhile.
    pub(crate) fn finish(self) -> Result<()> {
        for file in self.all() {
            let sha256 = locked(&file.order).sha.clone().hex();
            match &file.before {
                None => hashed::remember(&file.path, sha256)?,
                Some(before) => {
                    let now = Stamp::of(&file.path).map_err(Error::io("read", &file.path))?;
                    if now.renamed() != before.renamed() {
                        return Err(Error::Changed { path: file.path.clone() });
                    }
                    hashed::remember(&file.path, sha256)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
