//! Tasks that are used again: jobs of one kind, each carried out by a task that waits for the next one afterwards.
//!
//! Spawning a task allocates; with a task per piece that is an allocation per piece. A crew grows to the number of
//! jobs that were ever under way at once, within its bound, and stays. Participants: the driver gives jobs; tasks of
//! the tracker carry them out. Goals: jobs begin in the order in which they were given; a crew that is closed
//! finishes what it was given. Non-goals: results (jobs report by themselves); shrinking.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

struct Jobs<J> {
    waiting: VecDeque<J>,
    /// Tasks without a job, those included that were told of one and have not taken it yet.
    idle: usize,
    tasks: usize,
}

struct Shared<J> {
    jobs: Mutex<Jobs<J>>,
    /// A permit per waiting job; closed with the crew.
    given: Semaphore,
}

impl<J> Shared<J> {
    fn locked(&self) -> MutexGuard<'_, Jobs<J>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` once the crew is closed and nothing waits.
    async fn next(&self) -> Option<J> {
        if let Ok(permit) = self.given.acquire().await {
            permit.forget();
        }
        let mut jobs = self.locked();
        let job = jobs.waiting.pop_front()?;
        jobs.idle -= 1;
        Some(job)
    }
}

/// Counts a task while it lives, also when a job panics.
struct Member<J> {
    shared: Arc<Shared<J>>,
    busy: bool,
}

impl<J> Drop for Member<J> {
    fn drop(&mut self) {
        let mut jobs = self.shared.locked();
        jobs.tasks -= 1;
        if !self.busy {
            jobs.idle -= 1;
        }
    }
}

/// See the module's documentation.
pub(crate) struct Crew<J> {
    shared: Arc<Shared<J>>,
    /// Starts one more task.
    start: Box<dyn Fn(Arc<Shared<J>>) + Send + Sync>,
    tasks_max: usize,
}

impl<J: Send + 'static> Crew<J> {
    /// A crew without tasks yet, of at most `tasks_max`; each job is carried out by `work`.
    pub fn new<W, F>(tasks: TaskTracker, tasks_max: usize, work: W) -> Crew<J>
    where
        W: Fn(J) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let jobs = Mutex::new(Jobs { waiting: VecDeque::new(), idle: 0, tasks: 0 });
        let shared = Arc::new(Shared { jobs, given: Semaphore::new(0) });
        let start = Box::new(move |shared: Arc<Shared<J>>| {
            let work = work.clone();
            tasks.spawn(async move {
                let mut member = Member { shared, busy: false };
                while let Some(job) = member.shared.next().await {
                    member.busy = true;
                    work(job).await;
                    member.busy = false;
                    member.shared.locked().idle += 1;
                }
            });
        });
        Crew { shared, start, tasks_max: tasks_max.max(1) }
    }

    /// Gives a job. It waits when all tasks are busy and there may be no more.
    pub fn give(&self, job: J) {
        let mut jobs = self.shared.locked();
        jobs.waiting.push_back(job);
        let another = jobs.waiting.len() > jobs.idle && jobs.tasks < self.tasks_max;
        if another {
            jobs.tasks += 1;
            jobs.idle += 1;
        }
        drop(jobs);
        self.shared.given.add_permits(1);
        if another {
            (self.start)(self.shared.clone());
        }
    }

    /// No more jobs: tasks end when nothing waits any more.
    pub fn close(&self) {
        self.shared.given.close();
    }
}

impl<J> Drop for Crew<J> {
    fn drop(&mut self) {
        self.shared.given.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_few_tasks_do_many_jobs_and_all_of_them() {
        let (tasks, done) = (TaskTracker::new(), Arc::new(AtomicUsize::new(0)));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (done_, now_, most_) = (done.clone(), now.clone(), most.clone());
        let crew = Crew::new(tasks.clone(), 3, move |n: usize| {
            let (done, now, most) = (done_.clone(), now_.clone(), most_.clone());
            async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, SeqCst);
                done.fetch_add(n, SeqCst);
            }
        });
        (0..1000).for_each(|_| crew.give(1));
        crew.close();
        tasks.close();
        tasks.wait().await;
        assert_eq!(done.load(SeqCst), 1000, "a closed crew finishes what it was given");
        assert!((1..=3).contains(&most.load(SeqCst)), "{most:?} at once");
    }

    #[tokio::test]
    async fn a_job_that_panics_costs_its_task_only() {
        let (tasks, done) = (TaskTracker::new(), Arc::new(AtomicUsize::new(0)));
        let counted = done.clone();
        let crew = Crew::new(tasks.clone(), 1, move |bad: bool| {
            let done = counted.clone();
            async move {
                assert!(!bad, "on purpose");
                done.fetch_add(1, SeqCst);
            }
        });
        crew.give(true);
        while !tasks.is_empty() {
            tokio::task::yield_now().await;
        }
        crew.give(false);
        crew.close();
        tasks.close();
        tasks.wait().await;
        assert_eq!(done.load(SeqCst), 1);
    }
}
