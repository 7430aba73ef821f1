//! stub
#![allow(missing_docs)]
#[derive(Clone, Debug)]
pub struct CpuidEntry { pub function: u32, pub index: u32, pub significant_index: bool, pub eax: u32, pub ebx: u32, pub ecx: u32, pub edx: u32 }
#[derive(Clone, Copy)]
pub struct Options { pub tsc_deadline: bool, pub kernel_irqchip: bool }
pub fn for_vcpu(t: &[CpuidEntry], _id: u32, _n: u32, _o: Options) -> Vec<CpuidEntry> { t.to_vec() }
