//! A broker whose disk is full.
//!
//! With a single log directory a full disk does not answer with errors: the broker halts at the
//! first write that fails. It needs a small file system of its own, which needs root; without it
//! the test says so and ends.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use flopwatch::simulate::KeyBy;

use super::{PATIENCE, deployment};
use crate::broker::Broker;
use crate::fleet::Fleet;
use crate::world::World;

/// A broker's start, timeouts of session and transaction, a restore, on a busy machine.
const RECOVERY: Duration = Duration::from_secs(300);

/// A file system of 192 MiB in memory, unmounted with its owner.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=192m", "tmpfs"])
            .arg(directory.path())
            .status();
        mount.is_ok_and(|status| status.success()).then_some(Self { directory })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes until nothing more fits.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut ballast = File::create(&path).expect("a file");
        for size in [1 << 20, 4096, 1] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // lazily: a process that is just ending may still hold a file
        let ended = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(ended.is_ok_and(|status| status.success()), "umount {}", self.path().display());
    }
}

#[test]
fn a_broker_that_halts_on_a_full_disk_loses_and_repeats_nothing() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    let name = "full";
    let data = disk.path().join("kafka");
    let mut broker = Broker::start(Some(&data));
    let world = World::new(67, KeyBy::Event, 2);
    let (config, text) = deployment(name, &broker.address, "");
    let expected = world.replayed(&config);
    world.prepare(&config);
    let mut fleet = Fleet::new(&[text]);
    fleet.start(0);
    world.send(&config, 0, 40);
    let deadline = Instant::now() + PATIENCE;
    while broker.positions(name, &config.topics.usage, 2).iter().any(Option::is_none) {
        assert!(Instant::now() < deadline, "{}", fleet.tail(0));
        fleet.tend();
    }
    // the usage that is left is written before the disk is full, our outputs are not
    fleet.signal(0, "STOP");
    world.send(&config, 40, 100);
    let ballast = disk.fill();
    fleet.signal(0, "CONT");
    while broker.is_running() {
        assert!(Instant::now() < deadline, "the broker goes on without a disk");
        fleet.hold(Duration::from_millis(50));
    }
    fleet.hold(Duration::from_secs(3));
    fs::remove_file(ballast).expect("it was there");
    broker.restart(true);
    let deadline = Instant::now() + RECOVERY;
    while world.found_on(&broker, &config) != expected {
        assert!(
            Instant::now() < deadline,
            "{:#?} {}",
            [&config.topics.usage, &config.topics.account_usage, &config.topics.group_usage]
                .map(|topic| broker.stability(name, topic)),
            fleet.tail(0)
        );
        fleet.tend();
    }
    // a static member whose answer died with the broker is told that its name is taken, and ends
    eprintln!("started again after {:?}", fleet.ended);
    fleet.terminate(0);
    assert!(world.found_on(&broker, &config) == expected);
}
