//! larder: one cache for everything a build downloads.
//!
//! An intercepting proxy that knows what it is looking at, keeps what never changes, and proves every byte it keeps.
//! One request goes one way:
//!
//! ```text
//!  TcpStream
//!     │ accept      limits, a deadline                        ┌─ about larder itself ─▶ admin
//!     ▼                                                       │
//!  CONNECT host ────────── policy says tunnel ──▶ copied through, nothing read
//!     │ intercept   leaf certificate from `authority`; h2, http/1.1
//!     ▼
//!  Request          (plain-http absolute form joins here)
//!     │ target      one request names one thing, or 421/400
//!     ▼
//!  Target
//!     │ ecosystem   recognise: index, artifact, unknown
//!     ▼
//!  Resource
//!     │ policy      pass, revalidate or keep
//!     ▼
//!  Plan ── pass ──▶ the client's own request, streamed both ways, not stored
//!     │ store       fresh ▶ reply │ stale │ miss
//!     ▼
//!  Lookup
//!     │ flight      leader, or follow the leader's growing file
//!     ▼
//!  Permit
//!     │ origin      canonical fill or revalidation into a spool file, hashing
//!     ▼
//!  Received
//!     │ verify      every claim in scope; enough proof for the demand
//!     ▼
//!  Verified
//!     │ store       commit; an index replaces its claims as a set
//!     ▼
//!  Entry
//!     │ reply       status, headers, body or range; outcome recorded
//!     ▼
//!  Response
//! ```
//!
//! Only `pipeline` knows the order. The modules below stand in the order of their layers, and each uses only what
//! stands before it; a test holds them to that.

// The order is the architecture: what a module may use stands above it.
pub mod digest;

pub mod clock;

pub mod config;

pub mod target;

pub mod proof;

pub mod claim;

pub mod received;

pub mod entry;

pub mod keyring;

pub mod ecosystem;

pub mod verify;

pub mod policy;

pub mod freshness;

pub mod outcome;

pub mod store;

pub mod origin;

pub mod flight;

pub mod reply;

pub mod chase;

pub mod pipeline;

pub mod authority;

pub mod admin;

pub mod intercept;

pub mod accept;
