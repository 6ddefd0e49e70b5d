// oneDNN's descriptions, primitives and memories as objects that free themselves.
#pragma once
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "api.h"

namespace layers {

using Dims = std::vector<int64_t>;

class Desc {
public:
    Desc() = default;
    explicit Desc(dnnl_memory_desc_t owned) : desc_(owned) {}
    Desc(Desc&& other) noexcept : desc_(std::exchange(other.desc_, nullptr)) {}
    Desc& operator=(Desc&& other) noexcept {
        std::swap(desc_, other.desc_);
        return *this;
    }
    ~Desc() {
        if (desc_) dnnl.memory_desc_destroy(desc_);
    }
    static Desc strided(const Dims& dims, const Dims& strides) {
        dnnl_memory_desc_t made;
        check(dnnl.memory_desc_create_with_strides(&made, int(dims.size()), dims.data(), dnnl_f32,
                                                   strides.data()),
              "description");
        return Desc(made);
    }
    // In whatever order a primitive likes best.
    static Desc any(const Dims& dims) {
        dnnl_memory_desc_t made;
        check(dnnl.memory_desc_create_with_tag(&made, int(dims.size()), dims.data(), dnnl_f32,
                                               dnnl_format_tag_any),
              "description");
        return Desc(made);
    }
    static Desc clone(const_dnnl_memory_desc_t other) {
        dnnl_memory_desc_t made;
        check(dnnl.memory_desc_clone(&made, other), "description");
        return Desc(made);
    }
    dnnl_memory_desc_t get() const { return desc_; }
    int64_t floats() const { return int64_t(dnnl.memory_desc_get_size(desc_) / sizeof(float)); }
    bool operator==(const Desc& other) const { return dnnl.memory_desc_equal(desc_, other.desc_); }

private:
    dnnl_memory_desc_t desc_ = nullptr;
};

// The description of a primitive while one is made.
struct PrimitiveDesc {
    dnnl_primitive_desc_t desc = nullptr;
    PrimitiveDesc() = default;
    PrimitiveDesc(const PrimitiveDesc&) = delete;
    ~PrimitiveDesc() {
        if (desc) dnnl.primitive_desc_destroy(desc);
    }
    const_dnnl_memory_desc_t memory(dnnl_query_t what) const {
        return dnnl.primitive_desc_query_md(desc, what, 0);
    }
    // oneDNN computes everything somehow; what it has no fast code for is left to NNabla.
    void must_be_fast() const {
        const char* name = "";
        dnnl.primitive_desc_query(desc, dnnl_query_impl_info_str, 0, &name);
        if (std::strstr(name, "ref")) throw std::runtime_error("oneDNN has no fast code for it");
    }
};

struct Attributes {
    dnnl_primitive_attr_t attr;
    Attributes() {
        check(dnnl.primitive_attr_create(&attr), "attributes");
        dnnl.primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    }
    ~Attributes() { dnnl.primitive_attr_destroy(attr); }
};

// What runs on several threads at once, each with memories and scratch space of its own.
class Primitive {
public:
    struct Argument {
        int name;
        const_dnnl_memory_desc_t desc;
    };
    Primitive(const PrimitiveDesc& desc, const std::vector<Argument>& arguments, int threads) {
        check(dnnl.primitive_create(&primitive_, desc.desc), "primitive");
        const_dnnl_memory_desc_t scratch = desc.memory(dnnl_query_scratchpad_md);
        scratch_ = int64_t((dnnl.memory_desc_get_size(scratch) + 3) / sizeof(float));
        per_thread_.resize(threads);
        for (auto& list : per_thread_) {
            for (const Argument& argument : arguments) add(list, argument.name, argument.desc);
            add(list, DNNL_ARG_SCRATCHPAD, scratch);
        }
    }
    Primitive(const Primitive&) = delete;
    ~Primitive() {
        for (auto& list : per_thread_)
            for (auto& argument : list) dnnl.memory_destroy(argument.memory);
        if (primitive_) dnnl.primitive_destroy(primitive_);
    }
    // Floats that `run` needs as scratch space.
    int64_t scratch() const { return scratch_; }
    // `places`: of the arguments, in their order.
    bool run(int thread, const std::vector<const float*>& places, float* scratch) const {
        auto& list = per_thread_[thread];
        for (size_t i = 0; i < places.size(); ++i)
            dnnl.memory_set_data_handle(list[i].memory, const_cast<float*>(places[i]));
        dnnl.memory_set_data_handle(list.back().memory, scratch);
        return dnnl.primitive_execute(primitive_, stream(), int(list.size()), list.data()) ==
               dnnl_success;
    }

private:
    static void add(std::vector<dnnl_exec_arg_t>& list, int name, const_dnnl_memory_desc_t desc) {
        dnnl_memory_t memory;
        check(dnnl.memory_create(&memory, desc, dnnl.engine, DNNL_MEMORY_NONE), "memory");
        list.push_back({name, memory});
    }
    static dnnl_stream_t stream() {
        thread_local dnnl_stream_t made = nullptr;
        if (!made) dnnl.stream_create(&made, dnnl.engine, dnnl_stream_default_flags);
        return made;
    }
    dnnl_primitive_t primitive_ = nullptr;
    int64_t scratch_ = 0;
    std::vector<std::vector<dnnl_exec_arg_t>> per_thread_;
};

}  // namespace layers
