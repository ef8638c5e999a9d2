//! A TCP proxy on loopback that cuts, delays or withholds what passes through it.

#![allow(dead_code, reason = "each binary that tests with it uses a part")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

const UNPOISONED: &str = "nothing panics while it holds this lock";

/// What happens to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    Sound,
    /// Every chunk waits this long.
    Slow(Duration),
    /// Connections stay open and nothing passes, as when a switch has died.
    Silent,
    /// Every connection is closed and none is taken.
    Cut,
}

/// Passes connections to `port` on to `target`, until the process ends.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    line: Line,
    open: Vec<TcpStream>,
}

impl Proxy {
    pub(crate) fn start(port: u16, target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the proxy's port is free");
        let state = Mutex::new(State { line: Line::Sound, open: Vec::new() });
        let shared = Arc::new(Shared { target, state, changed: Condvar::new() });
        let taking = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                taking.take(client);
            }
        });
        Self { shared }
    }

    pub(crate) fn set(&self, line: Line) {
        let mut state = self.shared.lock();
        state.line = line;
        if line == Line::Cut {
            for connection in state.open.drain(..) {
                // one that has ended by itself cannot be ended
                connection.shutdown(Shutdown::Both).unwrap_or_default();
            }
        }
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(UNPOISONED)
    }

    /// Both ways of a new connection; a refused one is dropped, as is one that the broker refuses.
    fn take(self: &Arc<Self>, client: TcpStream) {
        let mut state = self.lock();
        if state.line == Line::Cut {
            return;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.target)) else { return };
        for end in [&client, &server] {
            // small requests and answers must not wait for each other
            end.set_nodelay(true).unwrap_or_default();
        }
        let handle = |end: &TcpStream| end.try_clone().expect("a second handle");
        state.open.extend([handle(&client), handle(&server)]);
        drop(state);
        for (from, to) in [(handle(&client), handle(&server)), (server, client)] {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.pass(from, to));
        }
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut chunk = [0; 64 * 1024];
        while let Ok(read) = from.read(&mut chunk) {
            if read == 0 {
                break;
            }
            self.wait();
            if to.write_all(&chunk[..read]).is_err() {
                break;
            }
        }
        for end in [from, to] {
            end.shutdown(Shutdown::Both).unwrap_or_default();
        }
    }

    /// As long as the line asks for.
    fn wait(&self) {
        let mut state = self.lock();
        if let Line::Slow(delay) = state.line {
            let slow = |state: &mut State| matches!(state.line, Line::Slow(_));
            let waited = self.changed.wait_timeout_while(state, delay, slow);
            state = waited.expect(UNPOISONED).0;
        }
        let silent = |state: &mut State| state.line == Line::Silent;
        drop(self.changed.wait_while(state, silent).expect(UNPOISONED));
    }
}
