//! A network of the test's own: a namespace for the test, the coordinator and the origin, one for each agent, and
//! links between them that can be cut.
//!
//! A namespace lives as long as the process that holds it, which ends when the test does: its standard input closes.

// The one wall of these tests: namespaces are entered by a system call.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};

use crate::harness::until;

/// Where the coordinator and the origin are.
pub const HUB: &str = "10.77.0.1";

struct Namespace(Child);

impl Namespace {
    fn new() -> Namespace {
        let mut unshare = Command::new("unshare");
        let child = unshare.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let namespace = Namespace(child.expect("util-linux has unshare"));
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        // Until it has one of its own it is in ours.
        until("a network namespace (this test needs root)", || {
            std::fs::read_link(namespace.path()).is_ok_and(|theirs| theirs != own)
        });
        namespace
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Words before a command that is to run in it.
    fn enter(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--net={}", self.path())]
    }

    fn ip(&self, arguments: &str) {
        let words = self.enter();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("ip").args(arguments.split_whitespace());
        let output = command.output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// This thread, and the threads and processes it starts from now on, are in it.
    fn move_in(&self) {
        let namespace = File::open(self.path()).unwrap();
        // SAFETY: the descriptor is open; the call changes nothing but this thread's view of the network.
        let rc = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(rc, 0, "setns: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Gone already: nothing to stop.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// See the module's documentation.
pub struct Network {
    hub: Namespace,
    nodes: Vec<Namespace>,
}

impl Network {
    /// A network of that many nodes. The calling thread moves into it.
    pub fn enter(nodes: usize) -> Network {
        let hub = Namespace::new();
        hub.ip("link set lo up");
        hub.ip("link add br0 type bridge");
        hub.ip(&format!("addr add {HUB}/24 dev br0"));
        hub.ip("link set br0 up");
        let nodes = (0..nodes).map(|i| {
            let node = Namespace::new();
            hub.ip(&format!("link add p{i} type veth peer name eth0 netns {}", node.0.id()));
            hub.ip(&format!("link set p{i} master br0 up"));
            node.ip("link set lo up");
            node.ip(&format!("addr add {}/24 dev eth0", Network::address(i)));
            node.ip("link set eth0 up");
            node
        });
        let nodes = nodes.collect();
        hub.move_in();
        Network { hub, nodes }
    }

    /// The address of a node.
    pub fn address(i: usize) -> String {
        format!("10.77.0.{}", i + 2)
    }

    /// Words before a command that is to run on a node.
    pub fn on(&self, i: usize) -> Vec<String> {
        self.nodes[i].enter()
    }

    /// Nothing gets to the node or from it, and nobody is told.
    pub fn cut(&self, i: usize) {
        self.hub.ip(&format!("link set p{i} nomaster"));
    }

    /// All is as it was.
    pub fn mend(&self, i: usize) {
        self.hub.ip(&format!("link set p{i} master br0"));
    }
}
