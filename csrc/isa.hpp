// One source for all processors: a file *_simd.cpp is compiled once for each instruction set, in the
// namespace ISA, and what it exports is called through PICK.
//
// Nothing inline of the standard library may be used in such a file: the linker keeps one copy of
// it, which may have instructions that this processor lacks.
#pragma once

#ifdef __x86_64__
#define FOR_EACH_ISA(X) X(base) X(v3) X(v4)
#define PICK(function) \
    (isa() == Isa::v4 ? v4::function : isa() == Isa::v3 ? v3::function : base::function)
enum class Isa { base, v3, v4 };  // SSE2, AVX2, AVX-512
#else
#define FOR_EACH_ISA(X) X(base)
#define PICK(function) (base::function)
enum class Isa { base };  // NEON on ARM
#endif

// What kernels are chosen for: the best that this processor has, or what `use` said.
Isa isa();
