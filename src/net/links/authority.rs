//! A small private authority for the certificates of nodes.
//!
//! Its certificates do not expire: who is to be shut out, is so by a new authority. They are all for one name, which says that
//! they are a node's; which node it is proves the handshake.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use super::dialling::TLS_NAME;

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the certificate cannot be made: {0}")]
pub struct AuthorityError(#[from] rcgen::Error);

/// Who signs the certificates of a cluster's nodes.
pub struct Authority {
    key: KeyPair,
    certificate: String,
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "convoke cluster");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn create() -> Result<Self, AuthorityError> {
        Self::with_key(KeyPair::generate()?)
    }

    /// The one with this key, in PEM.
    ///
    /// # Errors
    /// It is no key.
    pub fn of_key(key: &str) -> Result<Self, AuthorityError> {
        Self::with_key(KeyPair::from_pem(key)?)
    }

    fn with_key(key: KeyPair) -> Result<Self, AuthorityError> {
        let certificate = authority_params().self_signed(&key)?.pem();
        Ok(Self { key, certificate })
    }

    /// Its certificate, in PEM: what all nodes believe.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, in PEM: never on a node.
    pub fn key(&self) -> String {
        self.key.serialize_pem()
    }

    /// A certificate for a node, and its key, in PEM.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn issue(&self) -> Result<(String, String), AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![TLS_NAME.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, TLS_NAME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(authority_params(), &self.key);
        Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    }
}
