//! A TCP proxy that stalls or cuts what passes through it.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    stalled: Arc<watch::Sender<bool>>,
    cut: Arc<watch::Sender<u32>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stalled = Arc::new(watch::Sender::new(false));
        let cut = Arc::new(watch::Sender::new(0));
        let (stall, end) = (Arc::clone(&stalled), Arc::clone(&cut));
        let task = tokio::spawn(async move {
            while let Ok((here, _)) = listener.accept().await {
                let (stall, mut end) = (stall.subscribe(), end.subscribe());
                tokio::spawn(async move {
                    let Ok(there) = TcpStream::connect(to).await else { return };
                    let ((from, back), (answers, on)) = (here.into_split(), there.into_split());
                    tokio::select! {
                        () = pass(from, on, stall.clone()) => {}
                        () = pass(answers, back, stall) => {}
                        _ = end.changed() => {}
                    }
                });
            }
        });
        Self { address, stalled, cut, task }
    }

    /// Nothing passes any more, and nothing is closed: as behind a cut link, but TCP on both sides is
    /// answered.
    pub(crate) fn stall(&self) {
        self.stalled.send_replace(true);
    }

    /// All connections are closed.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|times| *times += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut stalled: watch::Receiver<bool>) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        if stalled.wait_for(|stalled| !*stalled).await.is_err() {
            return;
        }
        let count = from.read(&mut bytes).await.unwrap_or(0);
        if stalled.wait_for(|stalled| !*stalled).await.is_err() || count == 0 {
            return;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
