//! Traces of single messages, as OpenTelemetry has them: off unless a collector is configured.
//!
//! ```text
//! message   from its frame to its last push
//!   commit    until its conversation has it durable and answers
//!   deliver   until every listener of this node was written or queued it
//! ```
//! A message carries its trace with the answer that it is owed, so a message that is not traced costs a pointer.
//!
//! # Bounds
//! Of so many messages one is traced. What the collector does not take in time is dropped by the exporter's queue.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use convoke_protocol::id::{ConversationId, Seq, SessionId, UserId};
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use crate::config::traces::Traces as Config;
use crate::net::collector::Collector;

/// How long one export may take.
const EXPORT_WITHIN: Duration = Duration::from_secs(10);

/// Where messages are traced to, if anywhere.
#[derive(Debug, Default)]
pub struct Traces(Option<Tracing>);

#[derive(Debug)]
struct Tracing {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    one_in: u32,
    until_next: AtomicU32,
}

impl Traces {
    /// Starts the exporter, if a collector is configured.
    ///
    /// # Errors
    /// The collector's address is none.
    pub fn start(config: &Config, node: &str) -> anyhow::Result<Self> {
        if config.endpoint.is_empty() {
            return Ok(Self::default());
        }
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Collector)
            .with_protocol(Protocol::HttpJson)
            .with_endpoint(config.endpoint.as_str())
            .with_timeout(EXPORT_WITHIN)
            .build()?;
        let resource = Resource::builder()
            .with_service_name("convoke")
            .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let tracer = provider.tracer("convoke");
        Ok(Self(Some(Tracing { provider, tracer, one_in: config.one_in, until_next: AtomicU32::new(0) })))
    }

    /// Begins the trace of a message, if this is one that is traced.
    pub fn begin(&self, user: &UserId, session: SessionId) -> Option<Box<MessageTrace>> {
        let Tracing { tracer, one_in, until_next, .. } = self.0.as_ref()?;
        let passed = until_next.fetch_add(1, Ordering::Relaxed);
        if !passed.is_multiple_of(*one_in) {
            return None;
        }
        let who = [
            KeyValue::new("convoke.user", user.as_str().to_owned()),
            KeyValue::new("convoke.session", session.to_string()),
        ];
        let span =
            tracer.span_builder("message").with_kind(SpanKind::Server).with_attributes(who).start(tracer);
        let whole = Context::new().with_span(span);
        let phase = tracer.start_with_context("commit", &whole);
        Some(Box::new(MessageTrace { tracer: tracer.clone(), whole, phase, committed: false }))
    }

    /// Sends what is still here, and ends. Blocks for as long as the collector may take.
    pub fn shutdown(&self) {
        if let Some(Tracing { provider, .. }) = &self.0
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "not all traces were sent");
        }
    }
}

/// The trace of one message. Dropping it ends it.
#[derive(Debug)]
pub struct MessageTrace {
    tracer: SdkTracer,
    whole: Context,
    phase: Span,
    committed: bool,
}

impl MessageTrace {
    /// The message is durable and answered; its delivery begins.
    pub fn committed(&mut self, conversation: &ConversationId, seq: Seq) {
        self.committed = true;
        let whole = self.whole.span();
        whole.set_attribute(KeyValue::new("convoke.conversation", conversation.as_str().to_owned()));
        whole.set_attribute(KeyValue::new("convoke.seq", i64::try_from(seq.0).unwrap_or(i64::MAX)));
        self.phase.end();
        self.phase = self.tracer.start_with_context("deliver", &self.whole);
    }

    /// It was refused, or its outcome is not known.
    pub fn refused(&mut self, why: impl Into<Cow<'static, str>>) {
        self.whole.span().set_status(Status::error(why));
    }

    /// So many listeners of this node have it.
    pub fn delivered(&mut self, listeners: usize) {
        let listeners = i64::try_from(listeners).unwrap_or(i64::MAX);
        self.phase.set_attribute(KeyValue::new("convoke.listeners", listeners));
    }
}

impl Drop for MessageTrace {
    fn drop(&mut self) {
        self.phase.end();
        let whole = self.whole.span();
        if !self.committed {
            whole.set_status(Status::error("not committed"));
        }
        whole.end();
    }
}
