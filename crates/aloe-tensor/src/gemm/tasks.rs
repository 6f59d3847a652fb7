//! How a product is shared out: parts of its rows and panels that are tasks of a parallel loop.

use super::{FEW_ROWS, Gemm, NARROW, PANEL};
use crate::{Device, Isa};
use std::ops::Range;

/// Rows and panels of a product's tasks.
#[derive(Clone, Copy)]
pub(crate) struct Tasks {
    pub(crate) n: usize,
    /// Rows that a part of them is a multiple of.
    tile: usize,
    row_parts: usize,
    columns: Columns,
}

/// How the panels are shared out.
#[derive(Clone, Copy)]
enum Columns {
    /// So many a task; the last may have fewer.
    Of(usize),
    /// In so many parts, as equal as can be.
    Parts(usize),
}

/// Part `at` of `n` things in `parts` parts as equal as can be.
fn even_part(at: usize, n: usize, parts: usize) -> Range<usize> {
    at * n / parts..(at + 1) * n / parts
}

impl Gemm {
    /// How the product is shared out, with few rows `share` panels a task.
    pub(crate) fn tasks(&self, device: &Device, share: usize) -> Tasks {
        self.tasks_of(device.threads(), share, device.isa() == Isa::Amx)
    }

    fn tasks_of(&self, threads: usize, share: usize, by_tiles: bool) -> Tasks {
        let panels = self.n.div_ceil(PANEL);
        if self.m <= FEW_ROWS && self.a_panel_stride == 0 && threads > 1 {
            return Tasks { n: panels.div_ceil(share), tile: self.m, row_parts: 1, columns: Columns::Of(share) };
        }
        // A task begins at a tile, and at a panel of A where A lies in panels.
        let (tile, most_rows, fewest_panels) = match self.a_panel_stride {
            0 if by_tiles => (32, 256, 3),
            // A narrow panel is widened once a task: the more rows, the less often.
            0 if self.b_unit_stride == NARROW => (12, 264, 1),
            0 => (12, 240, 3),
            _ => (PANEL, 256, 3),
        };
        let (row_parts, column_parts) = self.parts(threads, (panels, fewest_panels), most_rows);
        Tasks { n: row_parts * column_parts, tile, row_parts, columns: Columns::Parts(column_parts) }
    }

    /// Rows and lanes of C that a task writes.
    pub(crate) fn extent(&self, tasks: Tasks, task: usize) -> (Range<usize>, Range<usize>) {
        // Tasks in a row share their panels, which stay in the shared cache.
        let (row, column) = (task % tasks.row_parts, task / tasks.row_parts);
        let rows = even_part(row, self.m.div_ceil(tasks.tile.max(1)), tasks.row_parts);
        let panels = match tasks.columns {
            Columns::Of(share) => column * share..(column + 1) * share,
            Columns::Parts(parts) => even_part(column, self.n.div_ceil(PANEL), parts),
        };
        let rows = rows.start * tasks.tile..(rows.end * tasks.tile).min(self.m);
        (rows, panels.start * PANEL..(panels.end * PANEL).min(self.n))
    }

    /// Parts of rows and of panels, all of nearly one size: eight tasks a thread where there is enough to do, so that a disturbed thread
    /// does not hold up the rest, and as many for each thread as for the others.
    fn parts(&self, threads: usize, (panels, fewest_panels): (usize, usize), most_rows: usize) -> (usize, usize) {
        let (mut rows, mut columns) = (self.m.div_ceil(most_rows), panels.div_ceil(16));
        if threads == 1 {
            return (rows, columns);
        }
        let (most_row_parts, most_columns) = (self.m.div_ceil(48), panels.div_ceil(fewest_panels));
        while rows * columns < 8 * threads {
            if columns < most_columns {
                columns += 1;
            } else if rows < most_row_parts {
                rows += 1;
            } else {
                break;
            }
        }
        if !(rows * columns).is_multiple_of(threads) {
            columns = columns.next_multiple_of(threads).min(panels);
        }
        (rows, columns)
    }
}

/// Panels of a task over few rows, for products of so many panels each in one loop: the largest share, of three tasks a thread or
/// more, that gives every thread the same number of panels; where there is none, the one that leaves the least to the busiest.
pub(crate) fn even_share(panels: &[usize], threads: usize) -> usize {
    let total: usize = panels.iter().sum();
    let most = total.div_ceil(3 * threads).clamp(1, 64);
    let mut best = (usize::MAX, most);
    for share in (most.div_ceil(2)..=most).rev() {
        best = best.min((busiest(panels, threads, share), share));
        if best.0 == total.div_ceil(threads) {
            break;
        }
    }
    best.1
}

/// Panels of the thread that has most of them when tasks of `share` panels are given out in ranges of equal length, as the pool
/// does.
fn busiest(panels: &[usize], threads: usize, share: usize) -> usize {
    let n_tasks: usize = panels.iter().map(|n| n.div_ceil(share)).sum();
    let (mut most, mut sum, mut task, mut thread) = (0, 0, 0, 0);
    for &n in panels {
        for at in 0..n.div_ceil(share) {
            while task >= (thread + 1) * n_tasks / threads {
                (sum, thread) = (0, thread + 1);
            }
            sum += share.min(n - at * share);
            most = most.max(sum);
            task += 1;
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    fn product(m: usize, n: usize, a_panel_stride: usize) -> Gemm {
        Gemm {
            dtype: Dtype::Bf16,
            m,
            n,
            units: 1,
            a: std::ptr::null(),
            a_stride: 0,
            a_by_unit: a_panel_stride > 0,
            a_panel_stride,
            b: std::ptr::null(),
            b_panel_stride: 0,
            b_unit_stride: PANEL,
            c: std::ptr::null_mut(),
            c_stride: 0,
            accumulate: false,
            add: std::ptr::null(),
            from_memory: true,
        }
    }

    #[test]
    fn tasks_are_all_of_a_product_once_and_begin_at_tiles_and_panels() {
        for m in [1, 12, 48, 49, 100, 512, 2049] {
            for n in [1, 31, 33, 192, 576, 1530] {
                for (threads, stride, unit_stride) in
                    [(1, 0, PANEL), (2, 0, PANEL), (3, 0, PANEL), (2, 7, PANEL), (1, 0, NARROW), (2, 0, NARROW)]
                {
                    let gemm = Gemm { b_unit_stride: unit_stride, ..product(m, n, stride) };
                    let tasks = gemm.tasks_of(threads, even_share(&[n.div_ceil(PANEL)], threads), false);
                    let mut seen = vec![0u8; m * n];
                    for task in 0..tasks.n {
                        let (rows, lanes) = gemm.extent(tasks, task);
                        assert!(rows.start.is_multiple_of(if stride > 0 { PANEL } else { 12 }), "{rows:?}");
                        assert!(lanes.start.is_multiple_of(PANEL) && !rows.is_empty() && !lanes.is_empty());
                        rows.for_each(|row| seen[row * n..][lanes.clone()].iter_mut().for_each(|n| *n += 1));
                    }
                    assert!(seen.iter().all(|&n| n == 1), "{m} x {n}, {threads} threads");
                }
            }
        }
    }

    /// The widths of SmolLM2-135M and of Llama-3-8B.
    #[test]
    fn two_threads_get_the_same_work_within_a_twentieth() {
        for m in [100, 512, 700, 2048] {
            for n in [192, 576, 1536, 1024, 4096, 14336] {
                for gemm in [product(m, n, 0), Gemm { b_unit_stride: NARROW, ..product(m, n, 0) }] {
                    let tasks = gemm.tasks_of(2, 0, false);
                    let work = |tasks_of: Range<usize>| -> usize {
                        tasks_of
                            .map(|task| gemm.extent(tasks, task))
                            .map(|(rows, lanes)| rows.len() * lanes.len())
                            .sum()
                    };
                    let (first, second) = (work(0..tasks.n / 2), work(tasks.n / 2..tasks.n));
                    assert!(20 * first.abs_diff(second) <= m * n, "{m} x {n}: {first} and {second}");
                }
            }
        }
    }
}
