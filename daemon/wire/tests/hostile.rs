//! Peers that break the protocol, and bytes that are none of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "how a test fails")]

mod movers;

use std::{sync::Arc, time::Duration};

use movers::{Movers, SECRET, TestServer};
use proptest::prelude::*;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use warmd_cbt::{
    buffer::Buffer,
    disk::{Allocation, DiskError, ErrorKind, ReadDisk},
    units::{BLOCK, Extent, Length, Offset},
};
use warmd_cbt_testing::{Faults, MemoryDisk};
use warmd_wire::{
    RemoteDisk, RemoteOptions, VERSION, fuzz,
    message::{Hello, MAX_DIGESTS, MAX_READ, Message, RefusalReason, Welcome},
};

const SIZE: u64 = 32 << 20;

fn disk() -> Arc<MemoryDisk> {
    let disk = MemoryDisk::new("memory", Length(SIZE), Faults::default(), 7);
    (0..SIZE / BLOCK).for_each(|block| disk.set_fill(block, block + 1));
    Arc::new(disk)
}

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(Offset(start), Length(len)).unwrap()
}

fn encoded(messages: &[Message<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        message.encode(&mut bytes);
    }
    bytes
}

fn hello(versions: (u16, u16)) -> Message<'static> {
    Message::Hello(Hello { versions, export: "disk".to_owned(), secret: SECRET })
}

/// Connects as the right mover, and sends these bytes.
async fn send(server: &TestServer, movers: &Movers, bytes: &[u8]) -> TlsStream<TcpStream> {
    let connector = TlsConnector::from(movers.identity("target").client("source").unwrap());
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("any").unwrap(), stream).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

/// All that the peer sends until it closes the connection.
async fn rest(stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A close without TLS's goodbye is an error, after the bytes.
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut bytes)).await.expect("it is not closed");
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_requests_end_their_connection_and_no_other() {
    let movers = Movers::new();
    let server = movers.serve(disk()).await;
    let remote = RemoteDisk::open(server.options(&movers, "target")).await.unwrap();
    let read = |id, start, len| Message::Read { id, extent: extent(start, len), pack: false };
    let many: Vec<_> =
        (0..500).map(|id| Message::AskDigests { id, extent: extent(0, SIZE), block: 65536 }).collect();
    let broken: [(&str, Vec<u8>); 7] = [
        ("noise", vec![0xa5; 300]),
        ("a message of 4 GiB", vec![0xff, 0xff, 0xff, 0xff, 4]),
        ("an empty message", vec![0, 0, 0, 0]),
        ("past the end", encoded(&[read(1, SIZE - 4096, 8192)])),
        ("a server's message", encoded(&[Message::Zeroes { id: 1, length: 4096 }])),
        ("a second hello", encoded(&[hello((1, 1))])),
        ("too many requests", encoded(&many)),
    ];
    for (what, bytes) in broken {
        let bytes = [encoded(&[hello((1, VERSION))]), bytes].concat();
        let mut stream = send(&server, &movers, &bytes).await;
        let answer = rest(&mut stream).await;
        assert!(answer.len() > 4 && fuzz::message(&answer[4..23]), "{what}: first the welcome");
        remote.read(Offset(0), Buffer::unpooled(BLOCK as usize)).await.expect(what);
    }
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(5), plain.read_to_end(&mut answer)).await.expect("it is not closed");
    remote.read(Offset(0), Buffer::unpooled(BLOCK as usize)).await.expect("no TLS");
    // The requests of ended connections end a moment later.
    let all_back = async {
        while server.pool.available() < 32 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), all_back).await.expect("not every buffer came back");
}

#[tokio::test]
async fn versions_are_agreed_upon_or_refused() {
    let movers = Movers::new();
    let server = movers.serve(disk()).await;
    let answer = |versions| {
        let (server, movers) = (&server, &movers);
        async move {
            let mut stream = send(server, movers, &encoded(&[hello(versions), Message::Bye])).await;
            rest(&mut stream).await
        }
    };
    let agreed = answer((0, VERSION + 3)).await;
    let Ok(Message::Welcome(welcome)) = Message::decode(&agreed[4..]) else { panic!("{agreed:?}") };
    assert_eq!((welcome.version, welcome.size), (VERSION, Length(SIZE)));
    for versions in [(VERSION + 1, VERSION + 2), (0, 0)] {
        let refused = answer(versions).await;
        let Ok(Message::Refused { reason, text }) = Message::decode(&refused[4..]) else {
            panic!("{refused:?}")
        };
        assert_eq!(reason, RefusalReason::Version);
        assert!(text.contains("versions 1 to 1"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_takes_nothing_holds_a_bounded_part_of_the_pool() {
    let movers = Movers::new();
    let server = movers.serve(disk()).await;
    let reads = (0..32).map(|id| Message::Read { id, extent: extent(id << 20, 1 << 20), pack: false });
    let messages: Vec<_> = std::iter::once(hello((1, 1))).chain(reads).collect();
    let _stuck = send(&server, &movers, &encoded(&messages)).await;
    sleep(Duration::from_millis(500)).await;
    let free = server.pool.available();
    assert!((16..32).contains(&free), "{free} of 32 buffers are free");
    let remote = RemoteDisk::open(server.options(&movers, "target")).await.unwrap();
    remote.read(Offset(0), Buffer::unpooled(BLOCK as usize)).await.expect("others are served");
}

/// Reads a block of a server that answers each request with these bytes.
async fn read_from(answer: Vec<u8>, welcome: Welcome) -> Result<Buffer, DiskError> {
    let movers = Movers::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = TlsAcceptor::from(movers.identity("source").server().unwrap());
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut bytes = [0; 4096];
                let _ = stream.write_all(&encoded(&[Message::Welcome(welcome)])).await;
                let mut is_answered = false;
                while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                    // A read, and no ping or hello.
                    if !is_answered && bytes[..count].windows(5).any(|some| some == [0, 0, 0, 26, 4]) {
                        is_answered = true;
                        let _ = stream.write_all(&answer).await;
                    }
                }
            });
        }
    });
    let tls = movers.identity("target").client("source").unwrap();
    let mut options = RemoteOptions::new(address, tls, "disk", SECRET);
    options.request_timeout = Duration::from_secs(5);
    options.connections = 1;
    let result = match RemoteDisk::open(options).await {
        Ok(remote) => remote.read(Offset(0), Buffer::unpooled(BLOCK as usize)).await,
        Err(error) => Err(error),
    };
    server.abort();
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_answers_never_reach_the_caller() {
    let welcome = Welcome { version: VERSION, size: Length(SIZE), max_read: 1 << 20, in_flight: 8 };
    let block = vec![9; BLOCK as usize];
    let digest = *blake3::hash(&block).as_bytes();
    let data = |id, digest, bytes: &[u8], length, is_packed| {
        encoded(&[Message::Data { id, digest, length, is_packed, bytes }])
    };
    let length = BLOCK as u32;
    let good = read_from(data(0, digest, &block, length, false), welcome).await.unwrap();
    assert!(good[..] == block[..]);
    let mut damaged = block.clone();
    damaged[777] ^= 1;
    let double = [block.clone(), block.clone()].concat();
    let runs = vec![Allocation { extent: extent(0, BLOCK), zero: true }];
    let wrong: [(&str, Vec<u8>, &str); 7] = [
        ("damaged", data(0, digest, &damaged, length, false), "does not match the digest"),
        ("no zstd", data(0, digest, &block[1..], length, true), "does not match the digest"),
        ("too long", data(0, digest, &double, length * 2, false), "more bytes than it has"),
        ("another id", data(1, digest, &block, length, false), "fits no request"),
        ("a lie about the length", data(0, digest, &block[..4], length, false), "does not fit its bytes"),
        ("another kind", encoded(&[Message::Allocated { id: 0, runs }]), "fits no request"),
        ("an endless message", vec![0xff; 64], "out of bounds"),
    ];
    for (what, answer, why) in wrong {
        let error = read_from(answer, welcome).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Protocol, "{what}: {error}");
        assert!(error.to_string().contains(why), "{what}: {error}");
    }
    for bad in [
        Welcome { version: VERSION + 1, ..welcome },
        Welcome { size: Length(u64::MAX), ..welcome },
        Welcome { max_read: u32::MAX, ..welcome },
        Welcome { in_flight: 0, ..welcome },
    ] {
        let error = read_from(Vec::new(), bad).await.unwrap_err();
        assert!(error.kind == ErrorKind::Protocol && error.to_string().contains("make no sense"), "{error}");
    }
}

fn any_extent(most: u64) -> impl Strategy<Value = Extent> {
    (0..1_u64 << 50, 1..=most).prop_map(|(start, len)| extent(start, len))
}

fn any_message() -> impl Strategy<Value = Message<'static>> {
    static BYTES: [u8; 5000] = [3; 5000];
    let id = any::<u64>;
    prop_oneof![
        (any::<(u16, u16)>(), "[a-z-]{0,80}", any::<[u8; 32]>())
            .prop_map(|(versions, export, secret)| Message::Hello(Hello { versions, export, secret })),
        (any::<(u16, u64, u32, u32)>()).prop_map(|(version, size, max_read, in_flight)| {
            Message::Welcome(Welcome { version, size: Length(size), max_read, in_flight })
        }),
        ".{0,100}".prop_map(|text| Message::Refused { reason: RefusalReason::Busy, text }),
        (id(), any_extent(MAX_READ as u64), any::<bool>()).prop_map(|(id, extent, pack)| Message::Read {
            id,
            extent,
            pack
        }),
        (id(), any::<[u8; 32]>(), 1..5000_usize, 1..9_u32).prop_map(|(id, digest, count, more)| {
            let is_packed = more > 4;
            let length = count as u32 + if is_packed { more } else { 0 };
            Message::Data { id, digest, length, is_packed, bytes: &BYTES[..count] }
        }),
        (id(), 1..=MAX_READ as u32).prop_map(|(id, length)| Message::Zeroes { id, length }),
        (id(), any_extent(1 << 40)).prop_map(|(id, extent)| Message::AskAllocation { id, extent }),
        (id(), prop::collection::vec((1..1_u64 << 30, any::<bool>()), 1..50)).prop_map(|(id, lengths)| {
            let mut at = Offset(4096);
            let run = |(len, zero)| {
                let extent = Extent::new(at, Length(len)).unwrap();
                at = extent.end();
                Allocation { extent, zero }
            };
            Message::Allocated { id, runs: lengths.into_iter().map(run).collect() }
        }),
        (id(), any_extent(512 * 4096)).prop_map(|(id, extent)| Message::AskDigests {
            id,
            extent,
            block: 4096
        }),
        (id(), prop::collection::vec(any::<[u8; 32]>(), 0..=MAX_DIGESTS))
            .prop_map(|(id, digests)| Message::Digests { id, digests }),
        (id(), ".{0,100}").prop_map(|(id, text)| Message::Failed { id, kind: ErrorKind::Media, text }),
        Just(Message::Ping),
        Just(Message::Pong),
        Just(Message::Bye),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn messages_come_back_as_they_were(message in any_message()) {
        let bytes = encoded(std::slice::from_ref(&message));
        prop_assert_eq!(Message::decode(&bytes[4..]), Ok(message));
        prop_assert!(Message::decode(&bytes[4..bytes.len() - 1]).is_err() || bytes[4] == 1 || bytes[4] == 5);
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        kind in 0..16_u8,
    ) {
        fuzz::message(&bytes);
        fuzz::message(&[&[kind][..], &bytes].concat());
    }

    #[test]
    fn changed_messages_do_no_harm(message in any_message(), at in any::<prop::sample::Index>(), to: u8) {
        let mut bytes = encoded(&[message]).split_off(4);
        let at = at.index(bytes.len());
        bytes[at] = to;
        fuzz::message(&bytes);
        fuzz::message(&bytes[..at]);
    }
}
