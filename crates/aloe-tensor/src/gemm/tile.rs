//! The innermost part of the product: what one unit adds, and a few rows against a few vectors of lanes with sums in registers.

use super::{Ahead, Gemm, PANEL};
use crate::simd::{Kernel, LANES, Simd, prefetch_near};

/// What one unit adds to the chain.
pub(super) trait Product: Copy {
    /// Parts that a unit is taken in, one after the other for all rows of a tile.
    fn parts<S: Simd>() -> usize {
        1
    }

    /// Whether blocks of B are worth widening before many rows meet them.
    fn widens<S: Simd>() -> bool {
        false
    }

    #[inline(always)]
    unsafe fn part<S: Simd>(unit: S::V, _part: usize) -> S::V {
        unit
    }

    /// The part of 16 lanes of B.
    #[inline(always)]
    unsafe fn of_b<S: Simd>(b: *const u32, part: usize) -> S::V {
        Self::part::<S>(S::load(b.cast()), part)
    }

    unsafe fn step<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V;
}

#[derive(Clone, Copy)]
pub(super) struct F32Product;

impl Product for F32Product {
    #[inline(always)]
    unsafe fn step<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        S::fma(a, b, acc)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Bf16Product;

impl Product for Bf16Product {
    /// Without a product of pairs, the upper halves of all rows come first and then the lower ones: the same chain, and each half
    /// is widened once.
    #[inline(always)]
    fn parts<S: Simd>() -> usize {
        if S::PAIRS_BF16 { 1 } else { 2 }
    }

    fn widens<S: Simd>() -> bool {
        !S::PAIRS_BF16
    }

    #[inline(always)]
    unsafe fn part<S: Simd>(unit: S::V, part: usize) -> S::V {
        match (S::PAIRS_BF16, part) {
            (true, _) => unit,
            (false, 0) => S::upper_bf16(unit),
            (false, _) => S::lower_bf16(unit),
        }
    }

    #[inline(always)]
    unsafe fn step<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        if S::PAIRS_BF16 { S::dot_bf16(acc, a, b) } else { S::fma(a, b, acc) }
    }
}

/// The same chain over a panel whose units were widened: upper halves of 32 lanes, then lower ones.
#[derive(Clone, Copy)]
pub(super) struct WidenedProduct;

impl Product for WidenedProduct {
    #[inline(always)]
    fn parts<S: Simd>() -> usize {
        2
    }

    #[inline(always)]
    unsafe fn part<S: Simd>(unit: S::V, part: usize) -> S::V {
        Bf16Product::part::<S>(unit, part)
    }

    #[inline(always)]
    unsafe fn of_b<S: Simd>(b: *const u32, part: usize) -> S::V {
        S::load(b.wrapping_add(part * PANEL).cast())
    }

    #[inline(always)]
    unsafe fn step<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        S::fma(a, b, acc)
    }
}

/// Runs a body for each row of a tile, written out row by row: where an index is not known to the compiler, the sums go to memory and back.
macro_rules! each_row {
    ($rows:ident, $i:ident => $body:block) => {
        each_row!(@ $rows, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $rows:ident, $i:ident, $body:block, $($n:literal)*) => {
        $(if $n < $rows {
            let $i = $n;
            $body
        })*
    };
}

pub(crate) use each_row;

/// `ROWS` rows (12 at most) by `VECTORS` vectors of C, held in registers over the block's units; where C is wider or higher, such a part
/// after the other, all parts of a row of them before those of the next.
pub(super) struct Tile<P, const BY_UNIT: bool, const ROWS: usize, const VECTORS: usize> {
    pub(super) g: Gemm,
    pub(super) ahead: Ahead,
    pub(super) product: std::marker::PhantomData<P>,
}

impl<P: Product, const BY_UNIT: bool, const ROWS: usize, const VECTORS: usize> Kernel
    for Tile<P, BY_UNIT, ROWS, VECTORS>
{
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (mut row, mut ahead) = (self.g, self.ahead);
        loop {
            self.across::<S>(row, ahead);
            if row.m <= ROWS {
                return;
            }
            row.m -= ROWS;
            row.a = row.a.wrapping_add(ROWS * if BY_UNIT { 1 } else { row.a_stride });
            row.c = row.c.wrapping_add(ROWS * row.c_stride);
            row.add = super::moved(row.add, ROWS * row.c_stride);
            ahead = ahead.after(1, row.units);
        }
    }
}

impl<P: Product, const BY_UNIT: bool, const ROWS: usize, const VECTORS: usize> Tile<P, BY_UNIT, ROWS, VECTORS> {
    /// The first `ROWS` rows.
    #[inline(always)]
    unsafe fn across<S: Simd>(&self, mut part: Gemm, ahead: Ahead) {
        while part.n >= VECTORS * LANES {
            self.whole::<S>(&part, ahead);
            part.n -= VECTORS * LANES;
            part.b = part.b.wrapping_add(VECTORS / 2 * part.b_panel_stride);
            part.c = part.c.wrapping_add(VECTORS * LANES);
            part.add = super::moved(part.add, VECTORS * LANES);
        }
        if part.n > 0 {
            self.narrow::<S>(&part, ahead);
        }
    }

    /// The first `VECTORS` vectors of g.
    #[inline(always)]
    unsafe fn whole<S: Simd>(&self, g: &Gemm, ahead: Ahead) {
        let mut acc = [[S::splat(0.0); VECTORS]; ROWS];
        if g.accumulate {
            each_row!(ROWS, i => {
                let row = g.c.wrapping_add(i * g.c_stride);
                let mut v = 0;
                while v < VECTORS {
                    acc[i][v] = S::load(row.wrapping_add(v * LANES));
                    v += 1;
                }
            });
        }
        if g.units >= LONG_CHAIN {
            fetch_c::<S, ROWS, VECTORS>(g);
        }
        chain::<S, P, BY_UNIT, ROWS, VECTORS>(g, ahead, &mut acc);
        if !g.add.is_null() {
            each_row!(ROWS, i => {
                let row = g.add.wrapping_add(i * g.c_stride);
                let mut v = 0;
                while v < VECTORS {
                    acc[i][v] = S::add(acc[i][v], S::load(row.wrapping_add(v * LANES)));
                    v += 1;
                }
            });
        }
        each_row!(ROWS, i => {
            let row = g.c.wrapping_add(i * g.c_stride);
            let mut v = 0;
            while v < VECTORS {
                S::store(row.wrapping_add(v * LANES), acc[i][v]);
                v += 1;
            }
        });
    }

    /// Fewer lanes than `VECTORS` vectors, by way of a tile that has room for all.
    #[inline(always)]
    unsafe fn narrow<S: Simd>(&self, g: &Gemm, ahead: Ahead) {
        let mut all = [[S::splat(0.0); VECTORS]; ROWS];
        let lanes = |v: usize| g.n.saturating_sub(v * LANES).min(LANES);
        if g.accumulate {
            for (i, row) in all.iter_mut().enumerate() {
                for (v, sums) in row.iter_mut().enumerate() {
                    *sums = S::load_up_to(g.c.wrapping_add(i * g.c_stride + v * LANES), lanes(v));
                }
            }
        }
        self.whole::<S>(
            &Gemm {
                n: VECTORS * LANES,
                c: all.as_mut_ptr().cast(),
                c_stride: VECTORS * LANES,
                add: std::ptr::null(),
                ..*g
            },
            ahead,
        );
        for (i, row) in all.iter().enumerate() {
            for (v, sums) in row.iter().enumerate() {
                let (at, n) = (i * g.c_stride + v * LANES, lanes(v));
                let added =
                    if g.add.is_null() { *sums } else { S::add(*sums, S::load_up_to(g.add.wrapping_add(at), n)) };
                S::store_up_to(g.c.wrapping_add(at), added, n);
            }
        }
    }
}

/// Units of a chain that takes longer than memory: meanwhile come what is added at its end, where its sums go, and those that the next rows
/// continue.
const LONG_CHAIN: usize = 96;

#[inline(always)]
unsafe fn fetch_c<S: Simd, const ROWS: usize, const VECTORS: usize>(g: &Gemm) {
    let mut i = 0;
    while i < ROWS {
        let mut v = 0;
        while v < VECTORS {
            let at = i * g.c_stride + v * LANES;
            if !g.add.is_null() {
                S::prefetch(g.add.wrapping_add(at).cast());
            }
            let ahead = if g.accumulate { ROWS * g.c_stride } else { 0 };
            S::prefetch(g.c.wrapping_add(ahead + at).cast_const().cast());
            v += 1;
        }
        i += 1;
    }
}

#[inline(always)]
unsafe fn chain<S: Simd, P: Product, const BY_UNIT: bool, const ROWS: usize, const VECTORS: usize>(
    g: &Gemm,
    ahead: Ahead,
    acc: &mut [[S::V; VECTORS]; ROWS],
) {
    let (mut a, mut b, mut fetch) = (g.a, g.b, ahead.from);
    let (a_step, a_row) = if BY_UNIT { (g.a_stride, 1) } else { (1, g.a_stride) };
    let mut left = g.units;
    while left > 0 {
        if ahead.step > 0 {
            let mut p = 0;
            while p < VECTORS.div_ceil(2) {
                let line = fetch.wrapping_add(p * g.b_panel_stride);
                if ahead.step == PANEL {
                    S::prefetch(line.cast());
                    S::prefetch(line.wrapping_add(LANES).cast());
                } else {
                    prefetch_near(line.cast());
                }
                p += 1;
            }
            fetch = fetch.wrapping_add(ahead.step);
        }
        let mut part = 0;
        while part < P::parts::<S>() {
            let mut panel = [S::splat(0.0); VECTORS];
            let mut v = 0;
            while v < VECTORS {
                panel[v] = P::of_b::<S>(b.wrapping_add(v / 2 * g.b_panel_stride + v % 2 * LANES), part);
                v += 1;
            }
            let mut i = 0;
            while i < ROWS {
                let unit = P::part::<S>(S::splat_at(a.wrapping_add(i * a_row)), part);
                let mut v = 0;
                while v < VECTORS {
                    acc[i][v] = P::step::<S>(acc[i][v], unit, panel[v]);
                    v += 1;
                }
                i += 1;
            }
            part += 1;
        }
        a = a.wrapping_add(a_step);
        b = b.wrapping_add(g.b_unit_stride);
        left -= 1;
    }
}
