//! Frames over each transport, as a client of any language would read and write them.

use std::io;
use std::net::SocketAddr;

use bytes::{Buf as _, BytesMut};
use convoke_protocol::frame::Codec;
use convoke_protocol::framing::{Framing, LENGTH_BYTES};
use convoke_protocol::{SUBPROTOCOL_BINCODE, SUBPROTOCOL_JSON};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest as _};
use tokio_tungstenite::{WebSocketStream, client_async};

/// A connection under whatever.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// One connection that carries frames.
pub(crate) enum Wire {
    Tcp { stream: Box<dyn Stream>, input: BytesMut },
    WebSocket { socket: Box<WebSocketStream<Box<dyn Stream>>>, codec: Codec, closed: Option<CloseCode> },
}

impl Wire {
    /// Connects without TLS.
    pub(crate) async fn connect(address: SocketAddr, framing: Framing) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::open(Box::new(stream), framing).await.unwrap()
    }

    /// Makes a connection carry frames.
    pub(crate) async fn open(stream: Box<dyn Stream>, framing: Framing) -> Result<Self, tungstenite::Error> {
        let codec = match framing {
            Framing::Tcp => return Ok(Self::Tcp { stream, input: BytesMut::new() }),
            Framing::WebSocket(codec) => codec,
        };
        let protocol = match codec {
            Codec::Bincode => SUBPROTOCOL_BINCODE,
            Codec::Json => SUBPROTOCOL_JSON,
        };
        let mut request = "ws://localhost/ws".into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        let (socket, answer) = client_async(request, stream).await?;
        assert_eq!(answer.headers()["sec-websocket-protocol"], protocol);
        Ok(Self::WebSocket { socket: Box::new(socket), codec, closed: None })
    }

    /// Writes one frame.
    pub(crate) async fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp { stream, .. } => {
                let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
                bytes.extend_from_slice(frame);
                stream.write_all(&bytes).await
            }
            Self::WebSocket { socket, codec, .. } => {
                let message = match codec {
                    Codec::Bincode => Message::binary(frame.to_vec()),
                    Codec::Json => Message::text(String::from_utf8(frame.to_vec()).unwrap()),
                };
                socket.send(message).await.map_err(io::Error::other)
            }
        }
    }

    /// Writes bytes below the framing.
    pub(crate) async fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp { stream, .. } => stream.write_all(bytes).await,
            Self::WebSocket { socket, .. } => {
                let stream = socket.get_mut();
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// Says below the framing that nothing more comes.
    pub(crate) async fn finish_raw(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp { stream, .. } => stream.shutdown().await,
            Self::WebSocket { socket, .. } => socket.get_mut().shutdown().await,
        }
    }

    /// Reads one byte from a TCP socket and forgets it; `None` at the end.
    pub(crate) async fn read_byte(&mut self) -> Option<u8> {
        match self {
            Self::Tcp { stream, .. } => stream.read_u8().await.ok(),
            Self::WebSocket { .. } => panic!("a WebSocket is read by messages"),
        }
    }

    /// The next frame; `None` at the end, however it came. Cancel-safe.
    pub(crate) async fn read(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Tcp { stream, input } => loop {
                if let Some(length) = input.first_chunk::<LENGTH_BYTES>() {
                    let length = u32::from_be_bytes(*length) as usize;
                    if input.len() >= LENGTH_BYTES + length {
                        input.advance(LENGTH_BYTES);
                        return Some(input.split_to(length).to_vec());
                    }
                }
                if stream.read_buf(input).await.unwrap_or(0) == 0 {
                    return None;
                }
            },
            Self::WebSocket { socket, codec, closed } => loop {
                match (socket.next().await?, *codec) {
                    (Ok(Message::Binary(frame)), Codec::Bincode) => return Some(frame.to_vec()),
                    (Ok(Message::Text(frame)), Codec::Json) => return Some(frame.as_bytes().to_vec()),
                    (Ok(Message::Close(frame)), _) => *closed = frame.map(|frame| frame.code),
                    (Ok(Message::Ping(_) | Message::Pong(_)), _) => {}
                    (Ok(other), codec) => panic!("{other:?} on a connection of {codec:?}"),
                    (Err(_), _) => return None,
                }
            },
        }
    }

    /// The code of the WebSocket's close frame, once it came.
    pub(crate) fn close_code(&self) -> Option<u16> {
        match self {
            Self::Tcp { .. } => None,
            Self::WebSocket { closed, .. } => closed.map(u16::from),
        }
    }
}
