//! Alternating rounds: every subject once in each, so that whatever else the machine does meets all alike.

use anyhow::{Result, bail};
use std::fmt::Debug;

/// What each subject's rounds gave, in the order of the subjects.
pub(crate) struct Figures<S> {
    subjects: Vec<S>,
    figures: Vec<Vec<f64>>,
}

impl<S: Copy + PartialEq + Debug> Figures<S> {
    /// Takes so many rounds. What fails is tried once more; what fails again ends all, for a ratio needs both.
    pub(crate) fn take(
        subjects: &[S],
        rounds: usize,
        mut measure: impl FnMut(S) -> Result<f64>,
    ) -> Result<Figures<S>> {
        let mut figures = vec![Vec::with_capacity(rounds); subjects.len()];
        for round in 1..=rounds {
            for (subject, figures) in subjects.iter().zip(&mut figures) {
                let figure = measure(*subject).or_else(|error| {
                    eprintln!("  {subject:?}: {error:#}; once more");
                    measure(*subject)
                })?;
                if figure <= 0.0 {
                    bail!("{subject:?} moved nothing");
                }
                eprintln!("  round {round}: {subject:?} {figure:.3}");
                figures.push(figure);
            }
        }
        Ok(Figures { subjects: subjects.to_vec(), figures })
    }

    /// One subject's figures, by round.
    pub(crate) fn of(&self, subject: S) -> &[f64] {
        let at = self.subjects.iter().position(|of| *of == subject);
        at.map_or(&[], |at| &self.figures[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn subjects_take_turns_and_what_fails_is_tried_once_more() {
        let mut order = String::new();
        let figures = Figures::take(&['a', 'b'], 2, |subject| {
            order.push(subject);
            if order == "ab" { Err(anyhow!("at first")) } else { Ok(order.len() as f64) }
        })
        .unwrap();
        assert_eq!(
            (order.as_str(), figures.of('a'), figures.of('b')),
            ("abbab", &[1.0, 4.0][..], &[3.0, 5.0][..])
        );
    }

    #[test]
    fn no_figure_is_made_up() {
        assert!(Figures::take(&['a'], 1, |_| Err(anyhow!("each time"))).is_err());
        assert!(Figures::take(&['a'], 1, |_| Ok(0.0)).is_err());
    }
}
