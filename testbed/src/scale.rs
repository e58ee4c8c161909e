//! How much of a matrix is run.

use crate::Rng;

/// Quick: a representative sample, the same at each run. Full (`ADIT_SCALE=full`): everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// For each change of the code.
    Quick,
    /// For a release.
    Full,
}

impl Scale {
    /// What the environment says.
    ///
    /// # Panics
    /// When `ADIT_SCALE` is neither `quick` nor `full`.
    #[must_use]
    pub fn get() -> Self {
        match std::env::var("ADIT_SCALE").as_deref() {
            Err(_) | Ok("" | "quick") => Self::Quick,
            Ok("full") => Self::Full,
            Ok(other) => panic!("ADIT_SCALE={other}: quick or full"),
        }
    }

    /// One of two figures.
    #[must_use]
    pub fn pick<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }

    /// All cases when full; else a sample in which every value of every aspect occurs. `aspects` names the values
    /// of a case, always the same number of them; the sample depends only on `seed`.
    ///
    /// # Panics
    /// When cases have different numbers of aspects.
    #[must_use]
    pub fn sample<T>(self, cases: Vec<T>, seed: u64, aspects: impl Fn(&T) -> Vec<String>) -> Vec<T> {
        if self == Self::Full {
            return cases;
        }
        let mut open: Vec<T> = cases;
        Rng::new(seed).shuffle(&mut open);
        let mut missing: std::collections::BTreeSet<(usize, String)> =
            open.iter().flat_map(|case| aspects(case).into_iter().enumerate()).collect();
        let mut chosen = Vec::new();
        while !missing.is_empty() {
            let news = |case: &T| {
                aspects(case).into_iter().enumerate().filter(|aspect| missing.contains(aspect)).count()
            };
            let best = (0..open.len()).max_by_key(|&at| (news(&open[at]), std::cmp::Reverse(at)));
            let case = open.swap_remove(best.expect("a value that is missing is in a case"));
            for aspect in aspects(&case).into_iter().enumerate() {
                missing.remove(&aspect);
            }
            chosen.push(case);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_every_value_and_is_small() {
        let mut cases = Vec::new();
        for a in 0..2 {
            for b in 0..7 {
                for c in 0..7 {
                    cases.push((a, b, c));
                }
            }
        }
        let aspects =
            |case: &(i32, i32, i32)| vec![case.0.to_string(), case.1.to_string(), case.2.to_string()];

        let sample = Scale::Quick.sample(cases.clone(), 1, aspects);

        assert!((7..=9).contains(&sample.len()), "{sample:?}");
        for b in 0..7 {
            assert!(sample.iter().any(|case| case.1 == b) && sample.iter().any(|case| case.2 == b));
        }
        assert_eq!(sample, Scale::Quick.sample(cases.clone(), 1, aspects));
        assert_eq!(Scale::Full.sample(cases.clone(), 1, aspects).len(), cases.len());
    }
}
