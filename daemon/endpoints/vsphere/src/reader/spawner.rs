//! Starts children that end with the daemon.
//!
//! Rule: nbdkit is told to end with its parent, which for the kernel is the thread that started it, and the
//! runtime's threads come and go: so one thread starts them all, and it never ends.

use std::{
    io,
    sync::{Mutex, PoisonError, mpsc},
};

use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
};

struct Order {
    command: Command,
    /// What drives the child's pipes.
    runtime: Handle,
    answer: oneshot::Sender<io::Result<Child>>,
}

static ORDERS: Mutex<Option<mpsc::Sender<Order>>> = Mutex::new(None);

/// Starts it.
pub(super) async fn spawn(command: Command) -> io::Result<Child> {
    let (answer, answered) = oneshot::channel();
    hand_over(Order { command, runtime: Handle::current(), answer })?;
    answered.await.map_err(io::Error::other)?
}

/// Gives the order to the thread, which is made with the first one.
fn hand_over(order: Order) -> io::Result<()> {
    let mut orders = ORDERS.lock().unwrap_or_else(PoisonError::into_inner);
    let order = match &*orders {
        None => order,
        Some(thread) => match thread.send(order) {
            Ok(()) => return Ok(()),
            // It is gone by a panic, and its children are.
            Err(mpsc::SendError(order)) => order,
        },
    };
    let (thread, received) = mpsc::channel();
    std::thread::Builder::new().name("readers".to_owned()).spawn(move || serve(&received))?;
    let sent = thread.send(order).map_err(|_| io::Error::other("the thread that starts readers ended"));
    *orders = Some(thread);
    sent
}

fn serve(orders: &mpsc::Receiver<Order>) {
    for Order { mut command, runtime, answer } in orders {
        let _inside = runtime.enter();
        // What is not waited for any more is dropped, and so ended.
        answer.send(command.spawn()).ok();
    }
}
