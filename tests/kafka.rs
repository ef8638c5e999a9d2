//! The service on a real Kafka.

#[path = "support/broker.rs"]
mod broker;
#[path = "support/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use flopwatch::http::health::Health;
use flopwatch::kafka::{Options, Service, topology};
use flopwatch::simulate::KeyBy;
use world::{World, config};

/// A whole run on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// One process of a deployment, in this one.
struct Process {
    service: Service,
    health: Arc<Health>,
}

impl Process {
    fn start(name: &str, instance: &str, workers: usize) -> Self {
        // RUST_LOG shows what the service says; only the first test can install it
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init()
            .unwrap_or_default();
        let config = Arc::new(config(name, instance, workers));
        let health = Arc::new(Health::new(workers));
        let layout = topology::prepare(&config).expect("topics are as they should be").layout;
        let service = Service::start(&config, layout, Options::default(), &health)
            .expect("the service starts");
        Self { service, health }
    }

    fn stop(self) {
        self.service.join().expect("nothing went wrong");
    }
}

fn run_equals_replay(name: &str, key: KeyBy, processes: usize) {
    let config = config(name, "test", 1);
    let world = World::new(7, key, 4);
    let expected = world.replayed(&config);
    assert!(expected.size().0 > 50, "{:?} alerts, slices, dead letters", expected.size());
    world.prepare(&config);
    world.send(&config, 0, 100);
    let running: Vec<Process> =
        (0..processes).map(|number| Process::start(name, &format!("p{number}"), 2)).collect();
    world.await_outcome(&config, &expected, PATIENCE);
    running.into_iter().for_each(Process::stop);
    assert_eq!(world.found(&config), expected);
}

#[test]
fn one_process_over_usage_keyed_by_account_equals_replay() {
    run_equals_replay("one-account", KeyBy::Account, 1);
}

#[test]
fn three_processes_over_usage_keyed_by_account_equal_replay() {
    run_equals_replay("three-account", KeyBy::Account, 3);
}

#[test]
fn one_process_over_usage_keyed_by_event_equals_replay() {
    run_equals_replay("one-event", KeyBy::Event, 1);
}

#[test]
fn three_processes_over_usage_keyed_by_event_equal_replay() {
    run_equals_replay("three-event", KeyBy::Event, 3);
}

#[test]
fn three_processes_over_unkeyed_usage_equal_replay() {
    run_equals_replay("three-none", KeyBy::None, 3);
}
