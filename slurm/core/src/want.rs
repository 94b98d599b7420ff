//! What a job asks for: `millstream:digits@v1,priority=5` in its comment, or the same without `millstream:` in
//! `--stage`.
//!
//! Words that do not begin with `millstream:` are the comment's own business. Words that do are parsed to the last
//! character or refused with the reason.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use millstream_types::id::{DatasetSelector, NameError};
use millstream_types::{DatasetName, Version};
use thiserror::Error;

use crate::limits::{PRIORITY_MAX, TEXT_BYTES_MAX, TIMEOUT_S_MAX, WANTS_MAX};

/// Before every request in a comment.
pub const PREFIX: &str = "millstream:";
/// Before the run's name of a checkpoint.
pub const CHECKPOINT: &str = "ckpt/";
/// Slurm's own sign for the name of the job.
const JOB_NAME: &str = "%x";

/// Data that a job asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Which.
    pub what: What,
    /// `Some(R)`: each shard on R of the job's nodes; `None`: everything on all of them.
    pub spread: Option<u32>,
    /// Higher goes first.
    pub priority: u32,
    /// How long to wait for it, when that is less than the site allows.
    pub timeout: Option<Duration>,
}

/// Which data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A version, or the latest of a name.
    Dataset(DatasetSelector),
    /// A checkpoint of a training run.
    Checkpoint {
        /// The run; `None` is the job's own name.
        run: Option<DatasetName>,
        /// The step; `None` is the latest, and none at all when there is no checkpoint yet.
        step: Option<u64>,
    },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Dataset(selector) => selector.fmt(f),
            What::Checkpoint { run, step } => {
                f.write_str(CHECKPOINT)?;
                match run {
                    Some(run) => run.fmt(f)?,
                    None => f.write_str(JOB_NAME)?,
                }
                match step {
                    Some(step) => write!(f, "@{step}"),
                    None => f.write_str("@latest"),
                }
            }
        }
    }
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)?;
        if let Some(spread) = self.spread {
            write!(f, ",spread={spread}")?;
        }
        if self.priority > 0 {
            write!(f, ",priority={}", self.priority)?;
        }
        match self.timeout {
            Some(timeout) => write!(f, ",timeout={}s", timeout.as_secs()),
            None => Ok(()),
        }
    }
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WantError {
    /// Over [`TEXT_BYTES_MAX`].
    #[error("the request has {0} bytes, and {TEXT_BYTES_MAX} are the most")]
    TooLong(usize),
    /// Over [`WANTS_MAX`].
    #[error("more than {WANTS_MAX} datasets are asked for")]
    TooMany,
    /// `Millstream:` and the like.
    #[error("{0:?} does not begin with {PREFIX:?} in lower case")]
    Prefix(String),
    /// A name or version.
    #[error("{word:?}: {source}")]
    Name {
        /// As written.
        word: String,
        /// Why.
        source: NameError,
    },
    /// A checkpoint without a step, or with one that is none.
    #[error("{0:?} is not ckpt/RUN@latest or ckpt/RUN@STEP (RUN may be %x, the job's name)")]
    Checkpoint(String),
    /// Not `spread=R`, `priority=P` or `timeout=D`, or with a value out of range.
    #[error(
        "{word:?}: {option:?} is not spread=R, priority=P (up to {PRIORITY_MAX}) or timeout=D (such as 30s, up to 7d)"
    )]
    Option {
        /// As written.
        word: String,
        /// The part.
        option: String,
    },
    /// The same data, or the same option, twice.
    #[error("{0:?} is asked for twice")]
    Twice(String),
}

impl FromStr for Want {
    type Err = WantError;

    fn from_str(word: &str) -> Result<Want, WantError> {
        let mut parts = word.split(',');
        let what = what(word, parts.next().unwrap_or_default())?;
        let mut want = Want { what, spread: None, priority: 0, timeout: None };
        let mut seen = Vec::new();
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            if seen.contains(&key) {
                return Err(WantError::Twice(format!("{key} of {word}")));
            }
            seen.push(key);
            want.option(key, value)
                .ok_or_else(|| WantError::Option { word: word.to_owned(), option: part.to_owned() })?;
        }
        Ok(want)
    }
}

impl Want {
    fn option(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "spread" => self.spread = Some(number(value).filter(|&r| r > 0)?),
            "priority" => self.priority = number(value).filter(|&p| p <= PRIORITY_MAX)?,
            "timeout" => {
                let timeout = humantime::parse_duration(value).ok()?;
                let bounded = (1..=TIMEOUT_S_MAX).contains(&timeout.as_secs());
                self.timeout = Some(Some(timeout).filter(|_| bounded)?);
            }
            _ => return None,
        }
        Some(())
    }
}

/// Digits only: `u32` would take a plus sign as well.
fn number<N: FromStr>(text: &str) -> Option<N> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

fn what(word: &str, text: &str) -> Result<What, WantError> {
    let name = |source| WantError::Name { word: word.to_owned(), source };
    let Some(checkpoint) = text.strip_prefix(CHECKPOINT) else {
        return text.parse().map(What::Dataset).map_err(name);
    };
    let wrong = || WantError::Checkpoint(word.to_owned());
    let (run, step) = checkpoint.split_once('@').ok_or_else(wrong)?;
    let run = match run {
        JOB_NAME => None,
        run => Some(run.parse().map_err(name)?),
    };
    let step = match step {
        "latest" => None,
        step => Some(number(step).ok_or_else(wrong)?),
    };
    Ok(What::Checkpoint { run, step })
}

/// What a comment asks for; nothing, when it does not speak of us.
///
/// # Errors
/// [`WantError`] in words for the user.
pub fn of_comment(comment: &str) -> Result<Vec<Want>, WantError> {
    let mut words = Vec::new();
    for word in comment.split_whitespace() {
        match word.get(..PREFIX.len()) {
            Some(PREFIX) => words.push(&word[PREFIX.len()..]),
            Some(prefix) if prefix.eq_ignore_ascii_case(PREFIX) => return Err(WantError::Prefix(word.to_owned())),
            _ => {}
        }
    }
    of_words(comment, words)
}

/// What `--stage` asks for: words, each with or without `millstream:`.
///
/// # Errors
/// [`WantError`] in words for the user.
pub fn of_stage(text: &str) -> Result<Vec<Want>, WantError> {
    of_words(text, text.split_whitespace().map(|word| word.strip_prefix(PREFIX).unwrap_or(word)))
}

fn of_words<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> Result<Vec<Want>, WantError> {
    let mut wants: Vec<Want> = Vec::new();
    for word in words {
        // Checked where there is a request: other comments may be as long as Slurm likes.
        if text.len() > TEXT_BYTES_MAX {
            return Err(WantError::TooLong(text.len()));
        }
        add(&mut wants, word.parse()?)?;
    }
    Ok(wants)
}

fn add(wants: &mut Vec<Want>, want: Want) -> Result<(), WantError> {
    match wants.iter().find(|w| w.what == want.what) {
        Some(same) if *same == want => return Ok(()),
        Some(_) => return Err(WantError::Twice(want.what.to_string())),
        None if wants.len() >= WANTS_MAX => return Err(WantError::TooMany),
        None => wants.push(want),
    }
    Ok(())
}

/// What both ask for together.
///
/// # Errors
/// [`WantError`] in words for the user.
pub fn of_both(comment: &str, stage: &str) -> Result<Vec<Want>, WantError> {
    let mut wants = of_comment(comment)?;
    for want in of_stage(stage)? {
        add(&mut wants, want)?;
    }
    Ok(wants)
}

/// What the `#BB_LUA` lines of a script ask for.
///
/// # Errors
/// [`WantError`] in words for the user.
pub fn of_script(script: &str) -> Result<Vec<Want>, WantError> {
    let mut wants = Vec::new();
    for line in script.lines().filter_map(|line| line.trim_start().strip_prefix("#BB_LUA")) {
        for want in of_comment(line)? {
            add(&mut wants, want)?;
        }
    }
    Ok(wants)
}

/// The newest step of `steps` of a run, or the one asked for. The name and version that hold it.
pub fn checkpoint<'a>(
    steps: impl IntoIterator<Item = (&'a str, u64, DatasetName, Version)>,
    run: &str,
    step: Option<u64>,
) -> Option<DatasetSelector> {
    let mine = steps.into_iter().filter(|(r, s, ..)| *r == run && step.is_none_or(|wanted| wanted == *s));
    let (_, _, name, version) = mine.max_by_key(|(_, step, ..)| *step)?;
    Some(DatasetSelector { name, version: Some(version) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> Want {
        of_comment(text).unwrap().remove(0)
    }

    #[test]
    fn requests_among_other_words() {
        let wants = of_comment("big run  millstream:digits@v1,priority=5\tplease millstream:ckpt/%x@latest").unwrap();
        let texts: Vec<_> = wants.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["digits@v1,priority=5", "ckpt/%x@latest"]);
        assert!(of_comment("nothing for millstream here: digits@v1").unwrap().is_empty());
        assert!(of_comment(&"x".repeat(5000)).unwrap().is_empty());
    }

    #[test]
    fn options() {
        let want = one("millstream:d,spread=2,priority=1000,timeout=10m");
        assert_eq!((want.spread, want.priority, want.timeout), (Some(2), 1000, Some(Duration::from_secs(600))));
        for bad in
            ["spread=0", "spread=", "spread=+1", "priority=1001", "timeout=1", "timeout=0s", "timeout=8d", "x=1", ""]
        {
            let text = format!("millstream:d@v,{bad}");
            assert!(matches!(of_comment(&text), Err(WantError::Option { .. })), "{text}");
        }
        assert!(of_comment("millstream:d,spread=1,spread=1").is_err());
    }

    #[test]
    fn what_is_not_a_name_is_refused() {
        for bad in ["", "a/b", "../x@v", "d@", "@v", "$(reboot)", "`id`", "d@v;rm", "d@v'", "ünicode", "d@v@w", "d@-\0"]
        {
            assert!(of_comment(&format!("millstream:{bad}")).is_err(), "{bad:?}");
        }
        for bad in ["ckpt/run", "ckpt/run@", "ckpt/run@x", "ckpt/run@-1", "ckpt/run@+1", "ckpt/a/b@1", "ckpt/@latest"] {
            assert!(of_comment(&format!("millstream:{bad}")).is_err(), "{bad:?}");
        }
        assert!(matches!(of_comment("Millstream:d@v"), Err(WantError::Prefix(_))));
    }

    #[test]
    fn the_same_twice_is_once_and_otherwise_an_error() {
        assert_eq!(of_both("millstream:d@v", "d@v millstream:e").unwrap().len(), 2);
        assert!(matches!(of_both("millstream:d@v", "d@v,priority=1"), Err(WantError::Twice(_))));
        let many: String = (0..17).map(|i| format!("d{i} ")).collect();
        assert_eq!(of_stage(&many), Err(WantError::TooMany));
    }

    #[test]
    fn lines_of_a_script() {
        let script =
            "#!/bin/sh\n#BB_LUA millstream:d@v\n  #BB_LUA millstream:e\n# BB_LUA millstream:f\necho millstream:g\n";
        assert_eq!(of_script(script).unwrap().len(), 2);
        assert!(of_script("#BB_LUA millstream:d@v,oops").is_err());
    }

    #[test]
    fn the_newest_checkpoint_of_a_run() {
        let step = |run, step: u64| (run, step, "c".parse().unwrap(), format!("s{step}").parse().unwrap());
        let steps = [step("a", 5), step("a", 12), step("b", 99)];
        let found = |run, wanted| checkpoint(steps.clone(), run, wanted).map(|s| s.to_string());
        assert_eq!(found("a", None).as_deref(), Some("c@s12"));
        assert_eq!(found("a", Some(5)).as_deref(), Some("c@s5"));
        assert_eq!((found("a", Some(6)), found("z", None)), (None, None));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,200}") {
            let _ = of_comment(&text);
            let _ = of_stage(&text);
            let _ = of_script(&text);
        }

        #[test]
        fn what_is_accepted_has_only_harmless_characters(text in "[ -~]{0,60}") {
            if let Ok(wants) = of_comment(&format!("{PREFIX}{text}")) {
                for want in wants {
                    let shown = want.to_string();
                    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.@,=/%".contains(c);
                    prop_assert!(shown.chars().all(fine), "{}", shown);
                }
            }
        }

        #[test]
        fn what_is_printed_parses_to_the_same(
            name in "[a-z][a-z0-9_.-]{0,10}", version in proptest::option::of("[a-z0-9][a-z0-9.]{0,5}"),
            spread in proptest::option::of(1u32..9), priority in 0u32..=1000, seconds in proptest::option::of(1u64..9999),
        ) {
            let version = version.map(|v| v.parse().unwrap());
            let what = What::Dataset(DatasetSelector { name: name.parse().unwrap(), version });
            let want = Want { what, spread, priority, timeout: seconds.map(Duration::from_secs) };
            prop_assert_eq!(of_comment(&format!("{PREFIX}{want}")).unwrap(), vec![want]);
        }
    }
}
