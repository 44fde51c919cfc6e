// qkvshare.kernels._native: see docs/cachecard.md and docs/codec-transform.md for the formats.
#include "bind.hpp"
#include "isa.hpp"

void bind_decode(nb::module_ &);
void bind_attention(nb::module_ &);
void bind_encode(nb::module_ &);
void bind_rans(nb::module_ &);

namespace {

Isa best() {
#ifdef __x86_64__
    if (__builtin_cpu_supports("x86-64-v4")) return Isa::v4;
    if (__builtin_cpu_supports("x86-64-v3")) return Isa::v3;
#endif
    return Isa::base;
}

Isa chosen = best();

constexpr const char *NAMES[] = {"base", "v3", "v4"};

// 8 values of 8 bytes from all over each array; all of one that has at most 512 bytes.
nb::bytes sample(const std::vector<Span> &arrays) {
    std::string out;
    for (const Span &one : arrays) {
        const bool whole = one.size <= 512;
        for (int n = 0; n < (whole ? 1 : 8); n++)
            out.append(one.as<const char>() + n * (one.size / 8), whole ? one.size : 8);
    }
    return nb::bytes(out.data(), out.size());
}

}  // namespace

Isa isa() { return chosen; }

NB_MODULE(_native, m) {
    m.def("isas", [] {
        return std::vector<std::string>(NAMES, NAMES + int(best()) + 1);
    }, "Names of the instruction sets that this processor has code for, the best last.");
    m.def("use", [](const std::string &name) {
        for (int n = 0; n <= int(best()); n++)
            if (name == NAMES[n]) {
                chosen = Isa(n);
                return;
            }
        throw nb::value_error("this processor has no such instruction set");
    }, "Compute with the instructions of `name`, for tests.");
#ifdef __x86_64__
    m.attr("multiplies_bfloat16") =
        bool(__builtin_cpu_supports("avx512bf16")) || bool(__builtin_cpu_supports("amx-bf16"));
#else
    m.attr("multiplies_bfloat16") = false;
#endif
    m.def("sample", &sample);
    bind_decode(m);
    bind_attention(m);
    bind_encode(m);
    bind_rans(m);
}
