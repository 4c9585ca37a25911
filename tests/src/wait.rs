//! Waiting for a condition. Rule: never only for a time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::interrupt;

/// The first pause; each pause is twice the one before, up to `SLOWEST`: a probe that
/// runs a program must not starve the program under test.
const POLL: Duration = Duration::from_millis(5);
const SLOWEST: Duration = Duration::from_millis(200);

/// Probes until there is an answer; `what` completes the sentence "waited for …". An error of the probe
/// ends the wait.
pub fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    let mut pause = POLL;
    loop {
        if let Some(answer) = probe().with_context(|| format!("while waiting for {what}"))? {
            return Ok(answer);
        }
        interrupt::check()?;
        if began.elapsed() > deadline {
            bail!("waited {deadline:?} in vain for {what}");
        }
        poll_pause(&mut pause);
    }
}

#[allow(clippy::disallowed_methods, reason = "the harness blocks its own thread, under a deadline")]
fn poll_pause(pause: &mut Duration) {
    std::thread::sleep(*pause);
    *pause = SLOWEST.min(*pause * 2);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_as_soon_as_the_condition_holds() {
        let mut asked = 0;
        let answer = wait_until("three", Duration::from_mins(1), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(answer.unwrap(), 3);
    }

    #[test]
    fn says_what_never_came() {
        let none = wait_until("the impossible", Duration::ZERO, || Ok(None::<()>));
        assert!(none.unwrap_err().to_string().contains("the impossible"));
        let broken = wait_until("it", Duration::from_mins(1), || bail!("broken") as Result<Option<()>>);
        assert_eq!(broken.unwrap_err().root_cause().to_string(), "broken");
    }
}
