// hetserve-kernel-bench: attention kernels against ref, then against the clock. A kernel that differs from ref is not timed; GB/s of KV read
// is given beside what the best of several read loops gets from the same memory in the same rounds; a share above 1.05 makes the run invalid.
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>

#include "bench/read_loops.h"
#include "bench/work.h"
#include "hetserve/isa.h"

namespace hetserve::bench {
namespace {

constexpr double kTolerance = 0.01;        // of a kernel's result, root mean square, relative to ref's
constexpr double kImpossible = 1.05;       // of the best read loop: faster means that something was not read from memory
constexpr int64_t kLeastBytes = 1 << 30;   // read between two uses of the same byte
constexpr int64_t kCaches = 4;             // and so many times the last-level cache
constexpr int kPrefillRows = 512;

struct Options {
  Shape shape;
  std::vector<std::string> isas;
  int rounds = 7;
  bool huge = true;
  std::string commit = "unknown";
  std::string command;
};

// A contestant of the interleaved rounds, and its best time over all the memory.
struct Entry {
  std::string name;
  std::string kind;  // read, or the instruction set of a kernel
  std::function<void()> pass;
  double best_s = 1e30;
};

// One thread is timed by its own CPU time, so that other programs' turns on the core do not count; several by the wall clock.
double seconds(int threads) {
  timespec now{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double difference(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(error / size);
}

// Throws unless every instruction set gives what ref gives.
std::map<std::string, double> check(Work& work, const std::vector<std::string>& isas) {
  use_isa("ref");
  work.run(0);
  const std::vector<float> want = work.result();
  std::map<std::string, double> differences;
  for (const std::string& isa : isas) {
    use_isa(isa);
    std::fill(work.out.begin(), work.out.end(), 0xff);  // NaN: what is not written shows
    work.run(0);
    differences[isa] = difference(work.result(), want);
    if (!(differences[isa] <= kTolerance)) throw std::runtime_error(isa + " differs from ref by " + std::to_string(differences[isa]) + "; nothing was timed");
  }
  return differences;
}

int64_t last_level_cache() { return std::max<int64_t>({sysconf(_SC_LEVEL3_CACHE_SIZE), sysconf(_SC_LEVEL2_CACHE_SIZE), 0}); }

void run_rounds(std::vector<Entry>& entries, int rounds, int threads) {
  for (int round = -1; round < rounds; ++round) {  // the first warms up
    for (Entry& entry : entries) {
      const double start = seconds(threads);
      entry.pass();
      if (round >= 0) entry.best_s = std::min(entry.best_s, seconds(threads) - start);
    }
  }
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

// Decode: all layers once per pass, beside the read loops over the same bytes.
std::string decode_json(const Options& options, bool* valid) {
  Shape shape = options.shape;
  const int64_t between = std::max<int64_t>(kLeastBytes, kCaches * last_level_cache());
  shape.layers = (between + shape.layer_bytes() - 1) / shape.layer_bytes();
  const Memory memory(shape.layers * shape.layer_bytes(), options.huge);
  fill_random(memory, shape.dtype);
  Work work(shape, memory);
  const auto differences = check(work, options.isas);

  static uint64_t sink;
  std::vector<Entry> entries;
  for (const ReadLoop& loop : read_loops()) entries.push_back({loop.name, "read", [&memory, loop] { sink += loop.read(memory.data(), memory.bytes()); }});
  for (const std::string& isa : options.isas) {
    entries.push_back({isa, isa, [&work, &shape, isa] {
                         use_isa(isa);
                         for (int64_t layer = 0; layer < shape.layers; ++layer) work.run(layer);
                       }});
  }
  run_rounds(entries, options.rounds, shape.threads);

  double read_best = 0;
  for (const Entry& e : entries) {
    if (e.kind == "read") read_best = std::max(read_best, static_cast<double>(memory.bytes()) / e.best_s * 1e-9);
  }
  std::ostringstream reads, kernels;
  for (const Entry& e : entries) {
    const double gbs = static_cast<double>(memory.bytes()) / e.best_s * 1e-9;
    if (e.kind == "read") {
      reads << (reads.tellp() > 0 ? ", " : "") << "{\"loop\": " << quoted(e.name) << ", \"gbs\": " << gbs << "}";
      continue;
    }
    *valid = *valid && gbs <= kImpossible * read_best;
    kernels << (kernels.tellp() > 0 ? ",\n    " : "") << "{\"isa\": " << quoted(e.name) << ", \"gbs\": " << gbs << ", \"share_of_read\": " << gbs / read_best
            << ", \"layer_s\": " << e.best_s / static_cast<double>(shape.layers) << ", \"rms_difference_from_ref\": " << differences.at(e.name) << "}";
  }
  std::ostringstream json;
  json << "{\"bytes_between_reuses\": " << memory.bytes() << ", \"layers\": " << shape.layers << ",\n   \"read_gbs\": " << read_best << ",\n   \"read_loops\": ["
       << reads.str() << "],\n   \"kernels\": [\n    " << kernels.str() << "]}";
  return json.str();
}

// Prefill: one sequence's last chunk over its whole context, limited by arithmetic.
std::string prefill_json(const Options& options) {
  Shape shape = options.shape;
  shape.batch = 1;
  shape.rows = std::min<int64_t>(kPrefillRows, shape.tokens);
  const Memory memory(shape.layer_bytes(), options.huge);
  fill_random(memory, shape.dtype);
  Work work(shape, memory);
  check(work, options.isas);
  std::vector<Entry> entries;
  for (const std::string& isa : options.isas) {
    entries.push_back({isa, isa, [&work, isa] {
                         use_isa(isa);
                         work.run(0);
                       }});
  }
  run_rounds(entries, options.rounds, shape.threads);
  std::ostringstream json;
  for (const Entry& e : entries) {
    json << (json.tellp() > 0 ? ",\n    " : "") << "{\"isa\": " << quoted(e.name) << ", \"rows\": " << shape.rows << ", \"context_tokens\": " << shape.tokens
         << ", \"gflops\": " << shape.layer_flops() / e.best_s * 1e-9 << ", \"layer_s\": " << e.best_s << "}";
  }
  return "[\n    " + json.str() + "]";
}

[[noreturn]] void usage(const std::string& problem) {
  throw std::invalid_argument(problem +
                              "\nhint: hetserve-kernel-bench [--batch 32] [--tokens 2048] [--q-heads 16] [--kv-heads 8] [--head-dim 64] [--dtype bfloat16] "
                              "[--order blocks|rows|shuffled] [--huge 1] [--threads 1] [--isa NAME[,NAME]] [--rounds 7] [--commit ID]");
}

int64_t number(const std::string& flag, const std::string& text) {
  char* end = nullptr;
  const int64_t value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 0 || value > 1'000'000) usage(flag + " expects a number, got '" + text + "'");
  return value;
}

std::vector<std::string> listed(const std::string& text) {
  std::vector<std::string> names;
  std::istringstream stream(text);
  for (std::string name; std::getline(stream, name, ',');) names.push_back(name);
  return names;
}

Options parse(int argc, char** argv) {
  Options o;
  Shape& s = o.shape;
  for (int i = 0; i < argc; ++i) o.command.append(i > 0 ? " " : "").append(argv[i]);
  const std::map<std::string, int64_t*> numbers = {{"--batch", &s.batch},     {"--tokens", &s.tokens},     {"--q-heads", &s.q_heads},
                                                   {"--kv-heads", &s.kv_heads}, {"--head-dim", &s.head_dim}};
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) usage(flag + " expects a value");
    const std::string value = argv[i + 1];
    if (numbers.count(flag) > 0) *numbers.at(flag) = std::max<int64_t>(1, number(flag, value));
    else if (flag == "--threads") s.threads = static_cast<int>(std::max<int64_t>(1, number(flag, value)));
    else if (flag == "--rounds") o.rounds = static_cast<int>(std::max<int64_t>(1, number(flag, value)));
    else if (flag == "--huge") o.huge = number(flag, value) != 0;
    else if (flag == "--dtype" && (value == "bfloat16" || value == "float32")) s.dtype = value == "float32" ? DType::float32 : DType::bfloat16;
    else if (flag == "--order" && (value == "blocks" || value == "rows" || value == "shuffled")) s.order = value;
    else if (flag == "--isa") o.isas = listed(value);
    else if (flag == "--commit") o.commit = value;
    else usage("unknown flag or value: " + flag + " " + value);
  }
  if (o.isas.empty()) {
    for (const std::string& isa : usable_isas()) {
      if (isa != "ref") o.isas.push_back(isa);
    }
  }
  return o;
}

int run(int argc, char** argv) {
  const Options o = parse(argc, argv);
  const Shape& s = o.shape;
  bool valid = true;
  const std::string decode = decode_json(o, &valid), prefill = prefill_json(o);
  std::printf("{\"bench\": \"kernels\", \"valid\": %s, \"commit\": %s,\n \"command\": %s,\n", valid ? "true" : "false", quoted(o.commit).c_str(),
              quoted(o.command).c_str());
  std::printf(" \"machine\": {\"cpu\": %s, \"cpus\": %ld, \"last_level_cache_bytes\": %ld, \"compiler\": %s},\n", quoted(cpu_model()).c_str(),
              sysconf(_SC_NPROCESSORS_ONLN), static_cast<long>(last_level_cache()), quoted("g++ " __VERSION__).c_str());
  std::printf(" \"shape\": {\"batch\": %ld, \"tokens\": %ld, \"q_heads\": %ld, \"kv_heads\": %ld, \"head_dim\": %ld, \"dtype\": %s, \"order\": %s, "
              "\"huge_pages\": %s, \"threads\": %d, \"rounds\": %d, \"clock\": \"%s\"},\n",
              s.batch, s.tokens, s.q_heads, s.kv_heads, s.head_dim, s.dtype == DType::float32 ? "\"float32\"" : "\"bfloat16\"", quoted(s.order).c_str(),
              o.huge ? "true" : "false", s.threads, o.rounds, s.threads == 1 ? "thread cpu" : "wall");
  std::printf(" \"decode\": %s,\n \"prefill\": %s}\n", decode.c_str(), prefill.c_str());
  return valid ? 0 : 1;
}

}  // namespace
}  // namespace hetserve::bench

int main(int argc, char** argv) {
  try {
    return hetserve::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
