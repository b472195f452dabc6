// Checks of what callers hand in. A failed one throws std::invalid_argument (ValueError in Python) with expression, values, file and line.
// Kernels hold no checks: everything is proven in csrc/bind before a pointer is used.
#pragma once

#include <sstream>
#include <stdexcept>

namespace hetserve {

template <class... Values>
[[noreturn]] void fail_check(const char* expression, const char* file, int line, const Values&... values) {
  std::ostringstream text;
  (text << ... << values);
  text << " [" << expression << " is false, " << file << ":" << line << "]";
  throw std::invalid_argument(text.str());
}

}  // namespace hetserve

#define HETSERVE_CHECK(condition, ...) \
  do { \
    if (!(condition)) ::hetserve::fail_check(#condition, __FILE__, __LINE__, __VA_ARGS__); \
  } while (0)
