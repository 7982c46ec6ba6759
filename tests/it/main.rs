//! larder's behaviour, seen from outside: one binary, one test environment, one file for each group of behaviours.
//!
//! `world` builds scripted origins, larders and clients. Everything happens on loopback, and time is moved instead of waited for.
//! Each check has a control that fails without the thing checked. A test for a failure of another cache names the place where
//! that failure is described (`project#number`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::panic, clippy::expect_used, reason = "likewise")]
#![expect(clippy::indexing_slicing, clippy::string_slice, reason = "likewise")]
#![expect(clippy::disallowed_methods, reason = "the world makes files and reads the environment")]

mod world;
mod world_itself;

mod announce;
mod apk;
mod apt;
mod apt_tampered;
mod bypass;
mod ca;
mod causes;
mod ci;
mod circles;
mod clear_signed;
mod clients;
mod coded;
mod contract;
mod credentials;
mod crowd;
mod deployment;
mod doctor;
mod doctor_lists;
mod doctor_roots;
mod documents;
mod early;
mod edges;
mod editions;
mod engines;
mod env;
mod exec;
mod exec_job;
mod exec_roots;
mod faults;
mod flight;
mod floods;
mod fresh_lists;
mod freshness;
mod front;
mod gap;
mod generations;
mod guard;
mod hit;
mod hung_origin;
mod identity;
mod images;
mod images_rotation;
mod index_reading;
mod kept_members;
mod key_rotation;
mod keys;
mod kill;
mod late;
mod late_resumed;
mod layers;
mod licences;
mod limits;
mod logins;
mod lost_keys;
mod lost_signers;
mod mirror;
mod mirror_clients;
mod mirror_registry;
mod npm_signatures;
mod oci;
mod oci_tokens;
mod other_answers;
mod others_hostile;
mod parts;
mod parts_hostile;
mod parts_union;
mod pass;
mod passed_roots;
mod patience;
mod patience_ends;
mod postel;
mod privacy;
mod privacy_archive;
mod privacy_registry;
mod privacy_secrets;
mod privacy_views;
mod process;
mod quota;
mod race;
mod redirects;
mod refusals;
mod registry_logins;
mod rights;
mod room;
mod scope;
mod secrets;
mod service;
mod setup;
mod setup_life;
mod sign_in_pages;
mod signed;
mod standard;
mod starting;
mod store;
mod suspect;
mod tags;
mod tenants;
mod together;
mod upstream;
mod vary;
