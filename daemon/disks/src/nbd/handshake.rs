//! The fixed newstyle handshake: greeting, structured replies, meta contexts, and opening the export.
//!
//! Rule: features that a server does not know are left out and listed in [`Export`]; a refusal is an error
//! with the server's words. Servers without NBD_OPT_GO are opened by NBD_OPT_EXPORT_NAME. The caller gives
//! the whole of it one deadline.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use warmd_cbt::units::MAX_DISK;

use super::{
    error::{NbdCause, NbdError},
    option_reply::{self as parse, BlockSizes, Info, ListedExport, OptionReply},
    reply::Violation,
    wire::{self, ExportFlags, greeting, info, option, option_reply},
};

/// The most exports that are read of a list.
const MAX_LISTED: usize = 10_000;
/// The most bytes of names and descriptions in a list.
const MAX_LIST_BYTES: usize = 4 << 20;
/// The most pieces of information on one export, far above what the protocol knows.
const MAX_INFOS: usize = 64;

/// The result of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Bytes on the disk.
    pub size: u64,
    pub flags: ExportFlags,
    pub blocks: BlockSizes,
    /// Whether replies may come in chunks.
    pub structured: bool,
    /// The meta contexts granted: number and name. Numbers hold for one connection only.
    pub contexts: Vec<(u32, String)>,
}

/// A connection in its handshake phase.
pub(super) struct Handshake<'a, R, W> {
    input: &'a mut R,
    output: &'a mut W,
    fixed: bool,
    no_zeroes: bool,
}

impl<'a, R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Handshake<'a, R, W> {
    /// Exchanges greetings.
    pub(super) async fn begin(input: &'a mut R, output: &'a mut W) -> Result<Self, NbdError> {
        let mut this = Self { input, output, fixed: false, no_zeroes: false };
        let magic: [u8; 8] = this.read().await?;
        if magic != *wire::GREETING {
            return Err(NbdError::of(Violation::Greeting(u64::from_be_bytes(magic))));
        }
        let style: [u8; 8] = this.read().await?;
        if style != *wire::OPTION_MAGIC {
            return Err(NbdError::of(Violation::Greeting(u64::from_be_bytes(style))));
        }
        let flags = u16::from_be_bytes(this.read().await?);
        this.fixed = flags & greeting::FIXED_NEWSTYLE != 0;
        this.no_zeroes = flags & greeting::NO_ZEROES != 0;
        let ours = flags & (greeting::FIXED_NEWSTYLE | greeting::NO_ZEROES);
        this.write(&u32::from(ours).to_be_bytes()).await?;
        Ok(this)
    }

    /// Opens the export `name` with those of `contexts` that the server has.
    pub(super) async fn open(mut self, name: &str, contexts: &[String]) -> Result<Export, NbdError> {
        if !self.fixed {
            return self.export_name(name, false, Vec::new()).await;
        }
        let structured = self.structured_replies().await?;
        let granted = if structured && !contexts.is_empty() {
            self.meta_contexts(name, contexts).await?
        } else {
            Vec::new()
        };
        self.go(name, structured, granted).await
    }

    /// Lists the exports, then says goodbye.
    pub(super) async fn list(mut self) -> Result<Vec<ListedExport>, NbdError> {
        if !self.fixed {
            let (what, code) = ("a list of its exports".into(), option_reply::ERR_UNSUP);
            return Err(NbdError::of(NbdCause::Refused { what, code, message: String::new() }));
        }
        self.option(option::LIST, &[]).await?;
        let (mut listed, mut bytes) = (Vec::new(), 0);
        loop {
            let (reply, body) = self.reply(option::LIST).await?;
            bytes += body.len();
            match reply.kind {
                option_reply::ACK => break,
                option_reply::SERVER if listed.len() < MAX_LISTED && bytes <= MAX_LIST_BYTES => {
                    listed.push(parse::parse_listed(&body).map_err(NbdError::of)?);
                }
                option_reply::SERVER => return Err(endless(option::LIST, MAX_LISTED)),
                _ => return Err(refused(option::LIST, reply, &body, || "a list of its exports".into())),
            }
        }
        // The list is complete: whether the server hears the farewell changes nothing.
        let _ = self.option(option::ABORT, &[]).await;
        Ok(listed)
    }

    async fn structured_replies(&mut self) -> Result<bool, NbdError> {
        self.option(option::STRUCTURED_REPLY, &[]).await?;
        let (reply, _) = self.reply(option::STRUCTURED_REPLY).await?;
        match reply.kind {
            option_reply::ACK => Ok(true),
            _ if reply.is_refusal() => Ok(false),
            kind => Err(NbdError::of(Violation::OptionReply { option: option::STRUCTURED_REPLY, kind })),
        }
    }

    async fn meta_contexts(
        &mut self,
        name: &str,
        contexts: &[String],
    ) -> Result<Vec<(u32, String)>, NbdError> {
        let mut data = string(name);
        data.extend((contexts.len() as u32).to_be_bytes());
        for context in contexts {
            data.extend(string(context));
        }
        self.option(option::SET_META_CONTEXT, &data).await?;
        let mut granted: Vec<(u32, String)> = Vec::new();
        loop {
            let (reply, body) = self.reply(option::SET_META_CONTEXT).await?;
            match reply.kind {
                option_reply::ACK => return Ok(granted),
                option_reply::META_CONTEXT => {
                    let (id, context) = parse::parse_context(&body).map_err(NbdError::of)?;
                    let repeated = granted.iter().any(|(number, text)| *number == id || *text == context);
                    if repeated || !contexts.contains(&context) {
                        let context = wire::plain_text(context.as_bytes());
                        return Err(NbdError::of(Violation::ContextGrant(context)));
                    }
                    granted.push((id, context));
                }
                // The export may be unknown: opening it will say so in better words.
                _ if reply.is_refusal() => return Ok(Vec::new()),
                kind => {
                    return Err(NbdError::of(Violation::OptionReply {
                        option: option::SET_META_CONTEXT,
                        kind,
                    }));
                }
            }
        }
    }

    async fn go(
        mut self,
        name: &str,
        structured: bool,
        contexts: Vec<(u32, String)>,
    ) -> Result<Export, NbdError> {
        let mut data = string(name);
        data.extend(1u16.to_be_bytes());
        data.extend(info::BLOCK_SIZE.to_be_bytes());
        self.option(option::GO, &data).await?;
        let (mut export, mut blocks) = (None, BlockSizes::DEFAULT);
        for _ in 0..MAX_INFOS {
            let (reply, body) = self.reply(option::GO).await?;
            match reply.kind {
                option_reply::INFO => match parse::parse_info(&body).map_err(NbdError::of)? {
                    Info::Export { size, flags } => export = Some((size, flags)),
                    Info::BlockSize(sizes) => blocks = sizes,
                    Info::Other => {}
                },
                option_reply::ACK => {
                    let (size, flags) = export.ok_or_else(|| NbdError::of(Violation::NoExportInfo))?;
                    return sized(Export { size, flags, blocks, structured, contexts });
                }
                option_reply::ERR_UNSUP => return self.export_name(name, structured, contexts).await,
                _ => return Err(refused(option::GO, reply, &body, || format!("the export \"{name}\""))),
            }
        }
        Err(endless(option::GO, MAX_INFOS))
    }

    /// The old way: a server without that export just closes the connection.
    async fn export_name(
        mut self,
        name: &str,
        structured: bool,
        contexts: Vec<(u32, String)>,
    ) -> Result<Export, NbdError> {
        self.option(option::EXPORT_NAME, name.as_bytes()).await?;
        let answer: [u8; 10] = self.read().await?;
        let (size, flags) =
            parse::export_info(&answer).ok_or_else(|| NbdError::of(Violation::NoExportInfo))?;
        if !self.no_zeroes {
            let _: [u8; 124] = self.read().await?;
        }
        sized(Export { size, flags, blocks: BlockSizes::DEFAULT, structured, contexts })
    }

    async fn option(&mut self, number: u32, data: &[u8]) -> Result<(), NbdError> {
        let mut message = Vec::with_capacity(16 + data.len());
        message.extend(wire::OPTION_MAGIC);
        message.extend(number.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.write(&message).await
    }

    async fn reply(&mut self, asked: u32) -> Result<(OptionReply, Vec<u8>), NbdError> {
        let header = self.read().await?;
        let reply = OptionReply::parse(&header, asked).map_err(NbdError::of)?;
        let mut body = vec![0; reply.length as usize];
        self.input.read_exact(&mut body).await.map_err(reading)?;
        Ok((reply, body))
    }

    async fn read<const N: usize>(&mut self) -> Result<[u8; N], NbdError> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).await.map_err(reading)?;
        Ok(bytes)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), NbdError> {
        let sent = async {
            self.output.write_all(bytes).await?;
            self.output.flush().await
        };
        sent.await.map_err(|error| NbdError::of(NbdCause::io("sending the handshake", error)))
    }
}

fn reading(error: std::io::Error) -> NbdError {
    NbdError::of(NbdCause::io("reading the handshake", error))
}

fn string(text: &str) -> Vec<u8> {
    let mut data = (text.len() as u32).to_be_bytes().to_vec();
    data.extend(text.as_bytes());
    data
}

fn sized(export: Export) -> Result<Export, NbdError> {
    if export.size > MAX_DISK { Err(NbdError::of(Violation::ExportSize(export.size))) } else { Ok(export) }
}

fn endless(option: u32, limit: usize) -> NbdError {
    NbdError::of(Violation::OptionEndless { option, limit })
}

fn refused(option: u32, reply: OptionReply, body: &[u8], what: impl FnOnce() -> String) -> NbdError {
    if !reply.is_refusal() {
        return NbdError::of(Violation::OptionReply { option, kind: reply.kind });
    }
    NbdError::of(NbdCause::Refused { what: what(), code: reply.kind, message: wire::plain_text(body) })
}
