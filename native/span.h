#pragma once

namespace hydraprune {

// Pixels [begin, end) of the input under one row or column of the output, and its factor in a mean.
struct Span {
    int begin, end;
    float factor;
};

}  // namespace hydraprune
