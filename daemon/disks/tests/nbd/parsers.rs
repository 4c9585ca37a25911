//! The parsers of servers' messages, over bytes in memory: random ones never do harm, right ones in any shape
//! work.

use crate::common::script::{chunk, data, hole, option_reply, simple, status};
use proptest::{collection::vec, prelude::*};
use warmd_disks::nbd::fuzz::{self, CONTEXTS, COOKIES, LENGTH, OFFSET};

const SIZE: usize = LENGTH as usize;

/// A message that a server could send, right or wrong, that names requests in flight more often than not.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let cookie = prop_oneof![4 => prop::sample::select(COOKIES.to_vec()), 1 => any::<u64>()];
    let place = (0u64..LENGTH.into(), 0u32..LENGTH + 2).prop_map(|(at, length)| (OFFSET + at, length));
    let body = prop_oneof![
        3 => place.clone().prop_map(|(at, length)| (1, data(at, &vec![7; length as usize]))),
        3 => place.prop_map(|(at, length)| (2, hole(at, length))),
        2 => vec((0..LENGTH, any::<u32>()), 0..4).prop_map(|runs| (5, status(CONTEXTS[0], &runs))),
        1 => vec(any::<u8>(), 0..40).prop_map(|bytes| (0x8001, bytes)),
        1 => Just((0, Vec::new())),
        1 => (any::<u16>(), vec(any::<u8>(), 0..40)),
    ];
    prop_oneof![
        6 => (any::<bool>(), cookie.clone(), body)
            .prop_map(|(done, cookie, (kind, body))| chunk(done, kind, cookie, &body)),
        2 => (cookie, 0u32..3, 0..SIZE + 1)
            .prop_map(|(cookie, errno, len)| simple(errno, cookie, &vec![3; len])),
        1 => vec(any::<u8>(), 0..64),
    ]
}

/// A read's reply: the bytes cut into chunks in any order, of which the all-zero ones may be holes.
fn shaped_reply() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let cuts = vec(1..SIZE, 0..12);
    let zeroes = vec(any::<bool>(), 13);
    (cuts, zeroes, any::<bool>(), any::<u64>()).prop_flat_map(|(mut cuts, zeroes, last_is_none, salt)| {
        cuts.extend([0, SIZE]);
        cuts.sort_unstable();
        cuts.dedup();
        let pieces: Vec<_> = cuts.windows(2).map(|w| (w[0], w[1])).collect();
        Just(pieces).prop_shuffle().prop_map(move |pieces| {
            let (mut wire, mut content) = (Vec::new(), crate::common::noise(salt, SIZE));
            for (n, (from, to)) in pieces.iter().enumerate() {
                let done = !last_is_none && n + 1 == pieces.len();
                let at = OFFSET + *from as u64;
                if zeroes[n % zeroes.len()] {
                    content[*from..*to].fill(0);
                    wire.extend(chunk(done, 2, COOKIES[0], &hole(at, (to - from) as u32)));
                } else {
                    wire.extend(chunk(done, 1, COOKIES[0], &data(at, &content[*from..*to])));
                }
            }
            if last_is_none {
                wire.extend(chunk(true, 0, COOKIES[0], &[]));
            }
            (wire, content)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_read_in_any_shape_arrives_whole((wire, content) in shaped_reply()) {
        let replayed = fuzz::replies(&wire, true);
        prop_assert!(matches!(replayed.outcomes[0], Some(Ok(()))), "{:?}", replayed.outcomes[0]);
        prop_assert!(replayed.data[0] == content);
        prop_assert!(replayed.outcomes[1..].iter().all(Option::is_none));
    }

    #[test]
    fn a_reply_cut_short_answers_nothing((wire, _) in shaped_reply(), cut in any::<prop::sample::Index>()) {
        let replayed = fuzz::replies(&wire[..cut.index(wire.len())], true);
        prop_assert!(replayed.outcomes.iter().all(Option::is_none));
    }

    #[test]
    fn what_servers_could_send_never_does_harm(pieces in vec(piece(), 0..12), structured: bool) {
        let replayed = fuzz::replies(&pieces.concat(), structured);
        prop_assert!(replayed.data.iter().all(|read| read.len() == SIZE));
        prop_assert!(replayed.outcomes.len() == COOKIES.len());
    }

    #[test]
    fn garbage_never_does_harm(bytes in vec(any::<u8>(), 0..400), structured: bool) {
        let replayed = fuzz::replies(&bytes, structured);
        prop_assert!(replayed.outcomes.iter().flatten().all(Result::is_err));
        prop_assert!(fuzz::handshake(&bytes).is_err());
        prop_assert!(fuzz::list(&bytes).is_err());
    }

    #[test]
    fn handshakes_never_do_harm(
        flags in 0u16..4, replies in vec((1u32..11, 0u32..7, any::<bool>(), vec(any::<u8>(), 0..40)), 0..8),
    ) {
        let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
        bytes.extend(flags.to_be_bytes());
        for (option, kind, refused, body) in replies {
            bytes.extend(option_reply(option, kind | u32::from(refused) << 31, &body));
        }
        let _ = fuzz::handshake(&bytes);
        let _ = fuzz::list(&bytes);
    }
}

#[test]
fn the_fuzz_targets_corpus_is_still_understood() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/corpus/nbd_reply");
    let mut answered = 0;
    for file in std::fs::read_dir(folder).expect("the corpus of tests/fuzz") {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let Some((mode, bytes)) = bytes.split_first() else { continue };
        match mode {
            0 | 1 => answered += fuzz::replies(bytes, *mode == 1).outcomes.iter().flatten().count(),
            2 => answered += usize::from(fuzz::handshake(bytes).is_ok()),
            _ => answered += usize::from(fuzz::list(bytes).is_ok()),
        }
    }
    assert!(answered >= 6, "the corpus leads nowhere: {answered} good answers");
}
