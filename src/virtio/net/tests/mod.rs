//! Tests of the card: a host side that can be told to wait, to fail and to go, and drivers that cut frames as they like.

mod commands;
mod frames;
mod life;
mod links;
mod support;
