//! Whom we believe to be the server, and the hash that binds a login to its certificate.

use super::tls::Roots;
use super::url::SslMode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode, Encode};

/// Verifies a server as `sslmode` and `sslrootcert` ask.
///
/// That the server holds the certificate's key is verified in every mode.
pub(super) struct ServerTrust {
    roots: Option<Roots>,
    verify_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerTrust {
    pub(super) fn new(
        mode: SslMode,
        roots: Option<Roots>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self {
            roots,
            verify_name: mode == SslMode::VerifyFull,
            algorithms,
        }
    }
}

impl std::fmt::Debug for ServerTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTrust")
            .field("verify_name", &self.verify_name)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerTrust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if roots.exact.iter().any(|trusted| trusted == end_entity) {
            check_validity(end_entity, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &roots.anchors,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        if self.verify_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What the chain would have checked of a certificate that is trusted as it stands.
fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let parsed = Certificate::from_der(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let validity = parsed.tbs_certificate().validity();
    let now = now.as_secs();
    if now < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// When a certificate ends to be valid, in seconds since 1970.
pub(super) fn expires_at(certificate: &CertificateDer<'_>) -> Option<u64> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let not_after = parsed.tbs_certificate().validity().not_after;
    Some(not_after.to_unix_duration().as_secs())
}

/// `tls-server-end-point` (RFC 5929): the certificate's hash, by the digest of its own signature.
///
/// `None` where the signature has no such digest (Ed25519) or an unknown one: the
/// login then goes without channel binding, as libpq's does.
pub(super) fn end_point_hash(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let algorithm = parsed.signature_algorithm();
    let digest = match algorithm.oid.to_string().as_str() {
        // RSASSA-PSS keeps its digest among the parameters.
        "1.2.840.113549.1.1.10" => pss_digest(&algorithm.parameters.as_ref()?.to_der().ok()?)?,
        oid => digest_of_signature(oid)?,
    };
    Some(match digest {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

fn digest_of_signature(oid: &str) -> Option<Hash> {
    Some(match oid {
        // RSA with MD5 and SHA-1, ECDSA with SHA-1: RFC 5929 puts SHA-256 in their place.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => Hash::Sha256,
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Hash::Sha224,
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => Hash::Sha256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Hash::Sha384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Hash::Sha512,
        _ => return None,
    })
}

/// RSASSA-PSS-params begin with `[0] { SEQUENCE { digest's OID, … } }`; absent means SHA-1.
fn pss_digest(parameters: &[u8]) -> Option<Hash> {
    let fields = AnyRef::from_der(parameters).ok()?.value();
    let Some((0xA0, _)) = fields.split_first() else {
        return Some(Hash::Sha256);
    };
    // The first value alone: others follow it.
    let length = usize::from(*fields.get(1)?);
    let algorithm = AnyRef::from_der(fields.get(2..2 + length)?).ok()?.value();
    let oid_length = usize::from(*algorithm.get(1)?);
    let oid: ObjectIdentifier =
        ObjectIdentifier::from_der(algorithm.get(..2 + oid_length)?).ok()?;
    Some(match oid.to_string().as_str() {
        "1.3.14.3.2.26" => Hash::Sha256,
        "2.16.840.1.101.3.4.2.4" => Hash::Sha224,
        "2.16.840.1.101.3.4.2.1" => Hash::Sha256,
        "2.16.840.1.101.3.4.2.2" => Hash::Sha384,
        "2.16.840.1.101.3.4.2.3" => Hash::Sha512,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_length(algorithm: &'static rcgen::SignatureAlgorithm) -> Option<usize> {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["h".into()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        end_point_hash(certificate.der()).map(|hash| hash.len())
    }

    #[test]
    fn the_digest_follows_the_signature() {
        assert_eq!(hash_length(&rcgen::PKCS_ECDSA_P256_SHA256), Some(32));
        assert_eq!(hash_length(&rcgen::PKCS_ECDSA_P384_SHA384), Some(48));
        assert_eq!(hash_length(&rcgen::PKCS_ECDSA_P521_SHA512), Some(64));
        assert_eq!(hash_length(&rcgen::PKCS_ED25519), None);
    }

    #[test]
    fn pss_parameters() {
        // openssl's DER for SHA-384 with MGF1 and a salt of 48 bytes, and the empty default.
        let sha384 = b"\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
            \xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\
            \x01\x65\x03\x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30";
        assert_eq!(pss_digest(sha384), Some(Hash::Sha384));
        assert_eq!(pss_digest(b"\x30\x00"), Some(Hash::Sha256));
        assert_eq!(pss_digest(b"\x30\x02\xa0\x7f"), None);
        assert_eq!(pss_digest(b"\x04"), None);
    }

    #[test]
    fn garbage_has_no_hash() {
        assert_eq!(
            end_point_hash(&CertificateDer::from(&b"\x30\x03abc"[..])),
            None
        );
    }
}
