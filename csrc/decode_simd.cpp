// Rows from their codes into their place in a cache (docs/cachecard.md 4, `packed`):
// number = inverse DCT of (Hadamard(level) * scale) + mean, and keys rotated by RoPE.
#include "blocks.hpp"

namespace ISA {
namespace {

template <class Out> bool decode(const Part &part, Rows &rows) {
    Out *out = static_cast<Out *>(part.numbers);
    for (int64_t head = 0; head < part.heads; head++, out += part.apart)
        if (!write_rows(rows, part, head, 0, part.tokens, out)) return false;
    return true;
}

}  // namespace

bool decode(const Part &part, char *space) {
    if (!part.tokens) return true;
    int64_t total[8] = {}, gone[8] = {};
    for (int64_t n = 0; n < part.heads * part.tokens; n++) total[part.info[n] & 7]++;
    Rows rows(part, total, gone, space);
    return part.bfloat16 ? decode<uint16_t>(part, rows) : decode<float>(part, rows);
}

}  // namespace ISA
