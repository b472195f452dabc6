// KvPool: a checked set of pages over memory that Python owns, and checks of page ids against it.
#pragma once

#include <cstdint>
#include <vector>

#include "bind/tensor.h"
#include "hetserve/pages.h"
#include "hetserve/params.h"

namespace hetserve::bind {

struct KvPool {
  Pages pages;
  py::object storage;  // keeps the memory alive
  int device = kCpu;
};

// Bytes of a pool; throws when a number is not positive or the product overflows.
int64_t pool_bytes(int64_t layers, int64_t pages, int64_t page_tokens, int64_t head_dim, DType dtype);

void check_layer(const KvPool& pool, int64_t layer);
void check_layers(const KvPool& pool, int64_t first_layer, int64_t last_layer);

// Every id names a page of the pool.
void check_page_ids(const KvPool& pool, const int32_t* ids, int64_t n, const char* name);

// The item is within rows, heads and a list of `listed` page ids.
void check_item(const AttentionItem& item, int64_t i, int64_t rows, int64_t q_heads, int64_t group, int64_t pages, int64_t listed);

void bind_pool(py::module_& module);
void bind_attention(py::module_& module);
void bind_device_attention(py::module_& module);
void bind_kv(py::module_& module);
void bind_linear(py::module_& module);
void bind_rows(py::module_& module);
void bind_runtime(py::module_& module);

}  // namespace hetserve::bind
