//! Certificates of links: both sides show one, and believe only those of the cluster's own authority.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::LinkTls;

/// Why links cannot be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum LinkTlsError {
    /// A file cannot be read or is not PEM.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificates and key do not fit, or are of no kind that is supported.
    #[error("the links' certificates cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// The authority cannot verify anybody.
    #[error("the links' authority cannot be used: {0}")]
    Authority(#[from] rustls::server::VerifierBuilderError),
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LinkTlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.map_err(|source| LinkTlsError::File { path: path.to_owned(), source })
}

impl LinkTls {
    /// Reads a node's certificate with its key, and the authority that signed those of all nodes.
    ///
    /// # Errors
    /// They cannot be read or used.
    pub fn load(certificate: &Path, key: &Path, authority: &Path) -> Result<Self, LinkTlsError> {
        let chain = certificates(certificate)?;
        let read_key = || {
            PrivateKeyDer::from_pem_file(key)
                .map_err(|source| LinkTlsError::File { path: key.to_owned(), source })
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(authority)? {
            roots.add(root)?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), read_key()?)?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, read_key()?)?;
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}
