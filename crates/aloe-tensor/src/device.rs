//! Who computes: the instruction set chosen once at run time, and the thread pool.
//!
//! Results are promised equal bit for bit for any number of threads of one instruction set, not between instruction sets: the
//! name is therefore printed and recorded.

use crate::pool::Pool;
use std::sync::{Arc, OnceLock};

/// Which kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// As [`Isa::Avx512Bf16`], and products of bf16 with weights by the tiles of AMX.
    Amx,
    /// AVX-512 with the dot products of bf16 and of bytes (VNNI), which processors got together.
    Avx512Bf16,
    /// AVX-512 (F, BW, DQ, VL); bf16 operands are widened.
    Avx512,
    /// AVX2 with FMA and half-precision conversion; bf16 operands are widened.
    Avx2,
    /// Plain Rust, any processor.
    Portable,
}

static CHOSEN: OnceLock<Isa> = OnceLock::new();

impl Isa {
    /// Whether this machine can run it.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let avx512_bf16 =
                avx512 && is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
            match self {
                Isa::Amx => avx512_bf16 && crate::gemm::amx::available(),
                Isa::Avx512Bf16 => avx512_bf16,
                Isa::Avx512 => avx512,
                Isa::Avx2 => avx2,
                Isa::Portable => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable
        }
    }

    /// All of them, the best first.
    pub const ALL: [Self; 5] = [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// The best this machine has, or what [`Isa::choose`] chose.
    pub fn best() -> Self {
        let best = || Isa::ALL.into_iter().find(|isa| isa.available()).unwrap_or(Isa::Portable);
        CHOSEN.get().copied().unwrap_or_else(best)
    }

    /// Makes `self` what [`Isa::best`] gives in this process, to repeat the result of another machine. Refused (false) where this
    /// machine lacks it or another choice was made before.
    pub fn choose(self) -> bool {
        self.available() && *CHOSEN.get_or_init(|| self) == self
    }

    /// Runs `work` in a function compiled for the best vectors of this machine, so that plain loops inlined into it use them. They do the
    /// same operations in the same order (Rust contracts no multiplication and addition): the result is that of `work()`, bit for bit.
    #[inline]
    pub fn wide<R>(work: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        match Self::best() {
            // SAFETY: `best` is available on this machine.
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => return unsafe { with_avx512(work) },
            // SAFETY: as above.
            Isa::Avx2 => return unsafe { with_avx2(work) },
            Isa::Portable => {}
        }
        work()
    }

    /// For records: `amx-bf16`, `avx512-bf16`, `avx512`, `avx2`, `portable`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Amx => "amx-bf16",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn with_avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

struct Inner {
    isa: Isa,
    pool: Pool,
}

/// A processor to compute on; clones share one thread pool.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

impl Device {
    /// The best kernels of this machine on `threads` threads (0: as many as the machine has).
    pub fn cpu(threads: usize) -> Self {
        Self::cpu_with(Isa::best(), threads)
    }

    /// The portable kernels, for tests and comparisons.
    pub fn cpu_portable(threads: usize) -> Self {
        Self::cpu_with(Isa::Portable, threads)
    }

    /// The kernels of `isa`, which must be available.
    pub fn cpu_with(isa: Isa, threads: usize) -> Self {
        assert!(isa.available(), "this machine has no {}", isa.name());
        let all = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if threads == 0 { all() } else { threads };
        Self { inner: Arc::new(Inner { isa, pool: Pool::new(threads) }) }
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.inner.pool.threads()
    }

    /// Kernels in use.
    pub fn isa(&self) -> Isa {
        self.inner.isa
    }

    /// For records and cache keys: `avx512-bf16, 2 threads`.
    pub fn name(&self) -> String {
        let threads = self.threads();
        format!("{}, {threads} thread{}", self.inner.isa.name(), if threads == 1 { "" } else { "s" })
    }

    /// Runs `body(0..n)` on the pool, each index once. The body must write only what its index owns.
    pub fn for_each(&self, n: usize, body: &(dyn Fn(usize) + Sync)) {
        self.inner.pool.for_each(n, body);
    }
}

impl Device {
    /// As the pool's.
    pub(crate) fn soon(&self, bytes: usize, start_of: impl Fn(usize) -> *const u8) {
        self.inner.pool.soon(bytes, start_of);
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.name())
    }
}
