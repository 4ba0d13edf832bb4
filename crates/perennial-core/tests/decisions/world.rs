//! A container that is moved by hand, with a clock and ids that count.

use perennial_core::container::{Container, Event, Exit, Phase, Run, StartMode};
use perennial_core::generations::choose::{ChooseError, Selector};
use perennial_core::generations::health::{RunFacts, judge, salvage};
use perennial_core::generations::rollback::{RollbackPlan, apply, plan, plan_undo};
use perennial_core::generations::{Appended, Frozen, Generation, Health, Policy, Queue, commit_exit};
use perennial_core::id::{ContainerId, Digest, LayerId, RunId, Seq};
use perennial_core::time::Time;

pub(crate) const SECOND: i64 = 1_000_000_000;
/// 2026-11-22T18:00:00Z.
pub(crate) const BEGIN: i64 = 1_795_370_400 * SECOND;

pub(crate) fn time(text: &str) -> Time {
    text.parse().expect("the test gives RFC 3339")
}

pub(crate) fn layer(number: u64) -> LayerId {
    LayerId::from_random(number.to_be_bytes())
}

pub(crate) fn image(byte: u8) -> Digest {
    Digest::from_sha256(&[byte; 32])
}

pub(crate) fn seqs(numbers: &[u64]) -> Vec<Seq> {
    numbers.iter().copied().map(Seq).collect()
}

/// How a run goes.
#[derive(Debug, Clone)]
pub(crate) struct Course {
    pub(crate) up_s: i64,
    pub(crate) code: i32,
    pub(crate) was_stopped: bool,
    pub(crate) check: Option<bool>,
    pub(crate) frozen: Frozen,
    pub(crate) mode: StartMode,
}

impl Course {
    /// Work of ten seconds that ends with code 0.
    pub(crate) fn clean() -> Self {
        let frozen = Frozen::Layer { bytes: 4096, entries: 3 };
        Self { up_s: 10, code: 0, was_stopped: false, check: None, frozen, mode: StartMode::Mount }
    }

    /// A crash within a second.
    pub(crate) fn quick_failure() -> Self {
        Self { up_s: 0, code: 1, ..Self::clean() }
    }

    /// Two minutes, then stopped as asked.
    pub(crate) fn long() -> Self {
        Self { up_s: 120, code: 143, was_stopped: true, ..Self::clean() }
    }

    /// Two minutes with a health check that passes.
    pub(crate) fn healthy() -> Self {
        Self { check: Some(true), ..Self::long() }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) container: Container,
    pub(crate) now: i64,
    runs: u64,
}

impl World {
    pub(crate) fn new(keep: u32) -> Self {
        let name = "web".parse().expect("a valid name");
        let id = ContainerId::from_random([7; 8]);
        let mut container = Container::new(id, name, (image(1), "debian".into()), Time::from_unix_nanos(BEGIN));
        container.policy = Policy { keep, ..Policy::default() };
        Self { container, now: BEGIN, runs: 0 }
    }

    /// A container with this many clean exits behind it.
    pub(crate) fn with_exits(keep: u32, exits: usize) -> Self {
        let mut world = Self::new(keep);
        for _ in 0..exits {
            world.run(&Course::clean());
        }
        world
    }

    pub(crate) fn now(&self) -> Time {
        Time::from_unix_nanos(self.now)
    }

    pub(crate) fn queue(&self) -> &Queue {
        self.container.queue.as_ref().expect("a run has made the queue")
    }

    pub(crate) fn queue_mut(&mut self) -> &mut Queue {
        self.container.queue.as_mut().expect("a run has made the queue")
    }

    pub(crate) fn generation(&self, seq: u64) -> &Generation {
        self.queue().get(Seq(seq)).expect("the test names a listed generation")
    }

    pub(crate) fn generation_mut(&mut self, seq: u64) -> &mut Generation {
        self.queue_mut().get_mut(Seq(seq)).expect("the test names a listed generation")
    }

    pub(crate) fn listed(&self) -> Vec<u64> {
        self.queue().generations.iter().map(|generation| generation.seq.0).collect()
    }

    pub(crate) fn quarantined(&self) -> Vec<u64> {
        self.queue().generations.iter().filter(|g| g.quarantined).map(|g| g.seq.0).collect()
    }

    pub(crate) fn current(&self) -> Option<u64> {
        self.queue().current.map(|seq| seq.0)
    }

    /// The run that a start from the current generation would be.
    pub(crate) fn next_run(&mut self, mode: StartMode) -> Run {
        self.runs += 1;
        let current = self.container.queue.as_ref().and_then(Queue::current);
        Run {
            id: RunId::from_random(self.runs.to_be_bytes()),
            epoch: self.container.epoch + 1,
            origin: current.map(|generation| generation.seq),
            image: current.map_or_else(|| self.container.image.clone(), |generation| generation.image.clone()),
            layers: current.map(|generation| generation.layers.clone()).unwrap_or_default(),
            image_layers: vec![layer(1 << 40)],
            mode,
            mount_options: vec!["metacopy=off".into()],
            layer: layer(self.runs),
            command_overridden: false,
            given: None,
            requested_at: self.now(),
            by: "root(0)".into(),
        }
    }

    pub(crate) fn step(&mut self, event: Event) -> Result<(), String> {
        self.container = self.container.clone().step(event).map_err(|error| error.to_string())?;
        Ok(())
    }

    pub(crate) fn start(&mut self, mode: StartMode) -> Run {
        let run = self.next_run(mode);
        self.step(Event::StartRequested(run.clone())).expect("the container rests");
        let started = Event::Started { run: run.id.clone(), pid: 42, at: self.now() };
        self.step(started).expect("the container is starting");
        run
    }

    pub(crate) fn end(&mut self, run: &Run, exit: Exit) {
        self.step(Event::Ended { run: run.id.clone(), exit }).expect("the container has this run");
    }

    pub(crate) fn commit(&mut self, run: &Run, frozen: Frozen) -> Appended {
        let now = self.now();
        commit_exit(&mut self.container, &run.id, frozen, now).expect("the container is exiting")
    }

    pub(crate) fn judged(&self, course: &Course) -> Exit {
        let facts = RunFacts {
            started_at: Some(Time::from_unix_nanos(self.now - course.up_s * SECOND)),
            ended_at: self.now(),
            code: course.code,
            was_stopped: course.was_stopped,
            was_out_of_memory: false,
            last_check_passed: course.check,
        };
        judge(&facts, self.container.policy.good_after_s)
    }

    /// One whole run from the current generation.
    pub(crate) fn run(&mut self, course: &Course) -> Appended {
        let run = self.start(course.mode);
        self.now += course.up_s * SECOND;
        let exit = self.judged(course);
        self.end(&run, exit);
        self.now += SECOND;
        self.commit(&run, course.frozen.clone())
    }

    /// One run whose end nobody sees.
    pub(crate) fn lose(&mut self) -> Appended {
        let run = self.start(StartMode::Mount);
        self.now += 60 * SECOND;
        let exit = salvage(self.now(), "power loss");
        self.end(&run, exit);
        self.commit(&run, Frozen::Layer { bytes: 8192, entries: 2 })
    }

    pub(crate) fn roll_back(&mut self, selector: &Selector) -> Result<RollbackPlan, ChooseError> {
        let planned = plan(self.queue(), selector)?;
        apply(self.queue_mut(), &planned)?;
        Ok(planned)
    }

    pub(crate) fn roll_back_to(&mut self, seq: u64) -> RollbackPlan {
        self.roll_back(&Selector::Seq(Seq(seq))).expect("the generation is listed")
    }

    pub(crate) fn undo(&mut self) -> Option<RollbackPlan> {
        let planned = plan_undo(self.queue())?;
        apply(self.queue_mut(), &planned).expect("the plan is fresh");
        Some(planned)
    }

    pub(crate) fn health(&self, seq: u64) -> Health {
        self.generation(seq).health
    }

    pub(crate) fn is_resting(&self) -> bool {
        matches!(self.container.phase, Phase::Created | Phase::Dormant)
    }
}
