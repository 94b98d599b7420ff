//! Where to bring data before Slurm has said which nodes the job gets.

/// What a site wants brought ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Whichever of the others fits the job.
    Auto,
    /// One copy over all candidates: the origin is read, and peers do the rest once nodes are known.
    Spread,
    /// Everything on every candidate.
    Everywhere,
    /// Nothing: only that the data exists is checked.
    Nothing,
}

/// What to stage, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Nothing,
    /// One copy over these nodes together.
    OneCopy(Vec<String>),
    /// All of it on each of these nodes.
    Everywhere(Vec<String>),
}

/// Decides. `candidates`: nodes that the job may get and that have an agent; `required`: those that it names itself;
/// `count`: how many it asks for.
pub fn plan(ahead: Ahead, candidates: Vec<String>, required: Vec<String>, count: u32) -> Plan {
    if ahead == Ahead::Nothing || candidates.is_empty() {
        return Plan::Nothing;
    }
    // It names all of its nodes: no guess is needed.
    let named = !required.is_empty() && required.len() >= count as usize;
    if named && required.iter().all(|n| candidates.contains(n)) {
        return Plan::Everywhere(required);
    }
    // It gets at least half of them whatever happens: at most as many copies are for nothing as are of use.
    let most = (count as usize).saturating_mul(2) >= candidates.len();
    match ahead {
        Ahead::Everywhere => Plan::Everywhere(candidates),
        Ahead::Auto if most => Plan::Everywhere(candidates),
        _ => Plan::OneCopy(candidates),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: usize) -> Vec<String> {
        (1..=count).map(|i| format!("n{i}")).collect()
    }

    #[test]
    fn small_jobs_in_large_partitions_get_one_copy() {
        assert_eq!(plan(Ahead::Auto, nodes(8), vec![], 3), Plan::OneCopy(nodes(8)));
        assert_eq!(plan(Ahead::Auto, nodes(8), vec![], 4), Plan::Everywhere(nodes(8)));
        assert_eq!(plan(Ahead::Spread, nodes(3), vec![], 3), Plan::OneCopy(nodes(3)));
        assert_eq!(plan(Ahead::Everywhere, nodes(8), vec![], 1), Plan::Everywhere(nodes(8)));
    }

    #[test]
    fn a_job_that_names_its_nodes_gets_them_ready() {
        let named = vec!["n2".to_owned()];
        assert_eq!(plan(Ahead::Spread, nodes(8), named.clone(), 1), Plan::Everywhere(named.clone()));
        assert_eq!(plan(Ahead::Spread, nodes(8), named.clone(), 2), Plan::OneCopy(nodes(8)));
        assert_eq!(plan(Ahead::Auto, vec![], named.clone(), 1), Plan::Nothing);
        assert_eq!(plan(Ahead::Nothing, nodes(8), named, 1), Plan::Nothing);
    }
}
