//! The clock of benches that run on one core: this thread's CPU time, so that a machine with other
//! work shows the same figures but for what it does to the caches.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub(crate) struct Clock(Duration);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(now())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        now() - self.0
    }
}

fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.expect("after the start"), nanoseconds.expect("below a second"))
}
