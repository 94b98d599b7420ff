//! What follows from what went wrong: to the job, and to nodes.
//!
//! A problem of the data never drains a node; a dead agent is the node's problem.

/// What kind of trouble it is. Made from the exit code class of the failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The request or the data: asking again does not help (unknown, malformed, wrong bytes, denied, no room).
    Data,
    /// It takes too long, or somebody cannot be reached: asking again may help.
    Later,
    /// These nodes have no agent that answers.
    Nodes(Vec<String>),
}

impl Trouble {
    /// From an exit code of `millstream`: 4 and 6 may pass, and so may what has no class of its own.
    pub fn of_code(code: u8) -> Trouble {
        match code {
            2 | 3 | 5 | 7 | 8 | 9 => Trouble::Data,
            _ => Trouble::Later,
        }
    }
}

/// What a site wants done with a job whose data is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Back into the queue, held, until somebody releases it.
    Hold,
    /// Back into the queue; Slurm tries again after about two minutes.
    Requeue,
    /// Ended.
    Cancel,
}

/// What a site wants done with a node whose agent does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// Drained, with the reason: the job runs elsewhere.
    Drain,
    /// Left as it is.
    Leave,
}

/// What a site has configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// [`Trouble::Data`].
    pub on_data: Job,
    /// [`Trouble::Later`].
    pub on_timeout: Job,
    /// [`Trouble::Nodes`].
    pub on_dead_agent: Node,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { on_data: Job::Hold, on_timeout: Job::Requeue, on_dead_agent: Node::Drain }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// With the job.
    pub job: Job,
    /// Nodes to drain.
    pub drain: Vec<String>,
}

impl Policy {
    /// What follows.
    pub fn verdict(&self, trouble: &Trouble) -> Verdict {
        match trouble {
            Trouble::Data => Verdict { job: self.on_data, drain: Vec::new() },
            Trouble::Later => Verdict { job: self.on_timeout, drain: Vec::new() },
            Trouble::Nodes(nodes) => {
                let drain = if self.on_dead_agent == Node::Drain { nodes.clone() } else { Vec::new() };
                Verdict { job: Job::Requeue, drain }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dead_agent_drains() {
        let policy = Policy::default();
        for code in 0..=255 {
            assert!(policy.verdict(&Trouble::of_code(code)).drain.is_empty(), "{code}");
        }
        let dead = Trouble::Nodes(vec!["n2".into()]);
        assert_eq!(policy.verdict(&dead), Verdict { job: Job::Requeue, drain: vec!["n2".into()] });
        let mild = Policy { on_dead_agent: Node::Leave, ..policy };
        assert!(mild.verdict(&dead).drain.is_empty());
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        let policy = Policy::default();
        assert_eq!(policy.verdict(&Trouble::of_code(3)).job, Job::Hold);
        assert_eq!(policy.verdict(&Trouble::of_code(4)).job, Job::Requeue);
        assert_eq!(policy.verdict(&Trouble::of_code(6)).job, Job::Requeue);
    }
}
