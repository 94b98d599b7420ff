//! What users are told, in plain words.

use std::time::Duration;

use millstream_proto::v1::JobReply;
use millstream_slurm::policy::{Job, Verdict};
use millstream_types::size::format_size;

use crate::failure::{Code, Failure};
use crate::output;

/// One line on a job whose data is ready: the accounting.
pub fn ready(job: &JobReply) -> String {
    let nodes = output::nodes(job.nodes.len());
    let waited = Duration::from_millis(job.waited_ms);
    let mut parts =
        vec![format!("S3 {}", format_size(job.origin_bytes)), format!("peers {}", format_size(job.peer_bytes))];
    parts.push(format!("cache {}", format_size(job.cache_bytes)));
    if job.shared_bytes > 0 {
        parts.push(format!("shared with other jobs {}", format_size(job.shared_bytes)));
    }
    format!(
        "millstream: {} ready on {nodes}, {}, waited {:.1} s; {}",
        job.datasets.join(", "),
        format_size(job.asked_bytes),
        waited.as_secs_f64(),
        parts.join(", ")
    )
}

/// One line on a job whose data is not there, and what becomes of it.
pub fn failed(failure: &Failure, verdict: &Verdict) -> String {
    let reason = match failure.reason.as_str() {
        "" => failure.thing.clone(),
        reason => format!("{}: {reason}", failure.thing),
    };
    let next = match (&failure.next, failure.code) {
        // It is not the job's owner who can start it.
        (_, Code::Unreachable) => "; next: tell your administrators when it stays so".to_owned(),
        (Some(next), _) => format!("; next: {next}"),
        (None, _) => String::new(),
    };
    let then = match (verdict.drain.is_empty(), verdict.job) {
        (false, _) => format!("; drained {}, the job runs again elsewhere", verdict.drain.join(", ")),
        (true, Job::Hold) => "; the job is held: correct it, then scontrol release".to_owned(),
        (true, Job::Requeue) => "; the job is requeued and tried again".to_owned(),
        (true, Job::Cancel) => "; the job is cancelled".to_owned(),
    };
    one_line(&format!("millstream: {reason}{then}{next}"))
}

/// Without line feeds and other control characters: it goes into Slurm's fields and into jobs' output.
pub fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(900).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_ready_job_says_everything() {
        let job = JobReply {
            nodes: vec!["n1".into(), "n2".into()],
            datasets: vec!["d@v".into()],
            asked_bytes: 2 << 20,
            origin_bytes: 1 << 20,
            peer_bytes: 1 << 20,
            waited_ms: 1_500,
            ..JobReply::default()
        };
        assert_eq!(
            ready(&job),
            "millstream: d@v ready on 2 nodes, 2.00 MiB, waited 1.5 s; S3 1.00 MiB, peers 1.00 MiB, cache 0 B"
        );
    }

    #[test]
    fn a_failure_says_what_becomes_of_the_job() {
        let failure = Failure::new(Code::Unknown, "d@v", "no\nsuch dataset").next("ask");
        let text = failed(&failure, &Verdict { job: Job::Hold, drain: vec![] });
        assert!(text.starts_with("millstream: d@v: no such dataset; the job is held"), "{text}");
        assert!(text.ends_with("next: ask"), "{text}");
        let away = Failure::new(Code::Unreachable, "coordinator", "no answer").next("start it");
        let text = failed(&away, &Verdict { job: Job::Requeue, drain: vec![] });
        assert!(text.ends_with("tried again; next: tell your administrators when it stays so"), "{text}");
    }
}
