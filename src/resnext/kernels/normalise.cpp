// Batch norm over a batch, the sum with a shortcut and ReLU as one operation, forward and backward: two passes each.
//
// Images lie as rows × channels, which is N×H×W×C, in float or bfloat16; everything else is float or double. Threads
// are those that torch has already: its OpenMP team is handed in as a function. All work is cut into slices that
// depend on the shape alone, and their results are merged in order: the same bits from any number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using Team = void (*)(void (*body)(void*), void* argument, unsigned threads, unsigned flags);  // GOMP_parallel

struct Shape {
    int64_t rows, channels;
    int64_t bfloat16;  // or else float
    int64_t threads;
    Team team;
};

// The mirror of `Forward` and `Backward` in normalising.py.
struct Forward {
    Shape shape;
    const void *images, *skip;  // skip: null for none
    void* output;
    const float *weight, *bias;
    double *mean, *scale;                    // put out for the backward pass: of the batch, 1 / sqrt(variance + epsilon)
    float *running_mean, *running_variance;  // null for none
    double momentum, epsilon;
    int64_t relu;
};

struct Backward {
    Shape shape;
    const void *gradient, *second;  // of the output, and of its other use (null for none), which is added
    const void *images, *output;    // output: null where ReLU's mask follows from the images, or there is no ReLU
    const float *weight, *bias;
    const double *mean, *scale;
    void *images_gradient, *joined;  // joined: the sum of gradients behind the mask; null where output is
    float *weight_gradient, *bias_gradient;
    int64_t relu;
};

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void store(float& to, float value) { to = value; }

inline void store(bfloat16& to, float value) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

// Several pixels side by side make one wide row, so that the innermost loops are long for any number of channels.
// A slice is a range of wide rows, a block as many of them as the first-level cache holds.
struct Plan {
    static constexpr int64_t least_width = 256, block_elements = 1 << 14, slice_elements = 1 << 17, most_slices = 64;
    int64_t channels, width, wide_rows, tail, block, slices;

    explicit Plan(const Shape& shape) : channels(shape.channels) {
        const int64_t pixels = (least_width + channels - 1) / channels;
        width = pixels * channels;
        wide_rows = shape.rows / pixels;
        tail = shape.rows % pixels * channels;
        block = std::max<int64_t>(8, block_elements / width);
        slices = std::clamp<int64_t>(wide_rows * width / slice_elements, 1, most_slices);
    }

    // Calls work(first element, wide rows, width) for each block of a slice; the tail is a block of one shorter row.
    template <class Work>
    void blocks(int64_t slice, Work work) const {
        const int64_t end = wide_rows * (slice + 1) / slices * width + (slice == slices - 1 ? tail : 0);
        for (int64_t first = wide_rows * slice / slices * width; first < end;) {
            const int64_t rows = std::clamp<int64_t>((end - first) / width, 1, block);
            const int64_t row_width = std::min(width, end - first);
            work(first, rows, row_width);
            first += rows * row_width;
        }
    }

    // One number a channel, repeated for every pixel of a wide row.
    template <class Value>
    std::vector<float> widened(Value value) const {
        std::vector<float> wide(width);
        for (int64_t i = 0; i < channels; ++i) wide[i] = static_cast<float>(value(i));
        for (int64_t i = channels; i < width; ++i) wide[i] = wide[i - channels];
        return wide;
    }
};

// Runs work(slice) for all slices on torch's threads; whoever is free takes the next one.
template <class Work>
void for_slices(const Shape& shape, const Plan& plan, Work work) {
    struct Shared {
        Work& work;
        int64_t slices;
        std::atomic<int64_t> next{0};
    } shared{work, plan.slices};
    const auto body = [](void* argument) {
        auto& all = *static_cast<Shared*>(argument);
        for (int64_t slice; (slice = all.next.fetch_add(1)) < all.slices;) all.work(slice);
    };
    const Team alone = [](void (*only)(void*), void* argument, unsigned, unsigned) { only(argument); };
    const Team team = shape.threads > 1 && plan.slices > 1 ? shape.team : alone;
    team(body, &shared, static_cast<unsigned>(shape.threads), 0);
}

// Mean and sum of squared deviations of each channel, of `count` rows seen so far (Chan, Golub and LeVeque 1979).
struct Moments {
    double count = 0;
    std::vector<double> mean, squares;

    explicit Moments(int64_t channels) : mean(channels), squares(channels) {}

    // value(i) and square(i): mean and sum of squared deviations of `more` further rows in channel i.
    template <class Mean, class Squares>
    void merge(double more, Mean value, Squares square) {
        const double share = more / (count + more), weight = count * share;
        const int64_t channels = static_cast<int64_t>(mean.size());
        double *means = mean.data(), *sums = squares.data();
#pragma omp simd
        for (int64_t i = 0; i < channels; ++i) {
            const double delta = value(i) - means[i];
            means[i] += delta * share;
            sums[i] += square(i) + delta * delta * weight;
        }
        count += more;
    }
};

// Adds one block, with its first row as a guess at the mean: of the deviations d from it, of n rows, the squares about
// the mean are Σd² − (Σd)²/n. The guess is one of the n, so (guess − mean)² is at most their sum of squares: however far
// off it is, no more than a factor of n + 1 ≤ 65 is lost to cancellation.
template <class T>
void add_block(Moments& moments, const T* images, int64_t rows, int64_t width, std::vector<float>& scratch) {
    scratch.assign(3 * width, 0.0f);
    float *guess = scratch.data(), *sum = guess + width, *squares = sum + width;
    for (int64_t i = 0; i < width; ++i) guess[i] = load(images[i]);
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) {
        const T* at = images + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            const float a = load(at[i]) - guess[i], b = load(at[i + width]) - guess[i];
            const float c = load(at[i + 2 * width]) - guess[i], d = load(at[i + 3 * width]) - guess[i];
            sum[i] += (a + b) + (c + d);
            squares[i] += (a * a + b * b) + (c * c + d * d);
        }
    }
    for (; row < rows; ++row)
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            const float deviation = load(images[row * width + i]) - guess[i];
            sum[i] += deviation;
            squares[i] += deviation * deviation;
        }
    const int64_t channels = static_cast<int64_t>(moments.mean.size());
    const double count = static_cast<double>(rows), each = 1.0 / count;
    for (int64_t at = 0; at < width; at += channels)
        moments.merge(
            count, [=](int64_t i) { return guess[at + i] + sum[at + i] * each; },
            [=](int64_t i) { return squares[at + i] - sum[at + i] * (sum[at + i] * each); });
}

template <class T>
Moments batch_moments(const Shape& shape, const Plan& plan, const T* images) {
    std::vector<Moments> parts(plan.slices, Moments(plan.channels));
    for_slices(shape, plan, [&](int64_t slice) {
        std::vector<float> scratch;
        plan.blocks(slice, [&](int64_t first, int64_t rows, int64_t width) {
            add_block(parts[slice], images + first, rows, width, scratch);
        });
    });
    Moments whole(plan.channels);
    for (const Moments& part : parts) {
        if (part.count == 0) continue;
        const double *mean = part.mean.data(), *squares = part.squares.data();
        whole.merge(
            part.count, [=](int64_t i) { return mean[i]; }, [=](int64_t i) { return squares[i]; });
    }
    return whole;
}

// (image − mean)·slope + bias with the mean in two floats: the first is subtracted exactly where it matters, the
// second is in the offset. One float alone would lose what a large mean rounds away.
struct Line {
    std::vector<float> mean, slope, offset;

    Line(const Plan& plan, const double* means, const double* scale, const float* weight, const float* bias)
        : mean(plan.widened([=](int64_t i) { return means[i]; })),
          slope(plan.widened([=](int64_t i) { return scale[i] * weight[i]; })),
          offset(plan.widened([=](int64_t i) {
              return bias[i] - (means[i] - static_cast<float>(means[i])) * scale[i] * weight[i];
          })) {}
};

template <class T, bool with_skip, bool relu>
void write_output(const Forward& call, const Plan& plan) {
    const Line line(plan, call.mean, call.scale, call.weight, call.bias);
    const float *mean = line.mean.data(), *slope = line.slope.data(), *offset = line.offset.data();
    for_slices(call.shape, plan, [&](int64_t slice) {
        plan.blocks(slice, [&](int64_t first, int64_t rows, int64_t width) {
            for (int64_t row = 0; row < rows; ++row) {
                const T* images = static_cast<const T*>(call.images) + first + row * width;
                const T* skip = with_skip ? static_cast<const T*>(call.skip) + first + row * width : nullptr;
                T* output = static_cast<T*>(call.output) + first + row * width;
#pragma omp simd
                for (int64_t i = 0; i < width; ++i) {
                    float value = (load(images[i]) - mean[i]) * slope[i] + offset[i];
                    if (with_skip) value += load(skip[i]);
                    if (relu) value = value < 0 ? 0.0f : value;  // NaN stays
                    store(output[i], value);
                }
            }
        });
    });
}

void update_running(const Forward& call, const Moments& moments) {
    const double keep = 1 - call.momentum;
    for (size_t i = 0; i < moments.mean.size(); ++i) {
        const double variance = moments.squares[i] / (moments.count - 1);
        call.running_mean[i] = static_cast<float>(call.momentum * moments.mean[i] + keep * call.running_mean[i]);
        call.running_variance[i] = static_cast<float>(call.momentum * variance + keep * call.running_variance[i]);
    }
}

template <class T>
void forward(const Forward& call) {
    const Plan plan(call.shape);
    const Moments moments = batch_moments(call.shape, plan, static_cast<const T*>(call.images));
    for (int64_t i = 0; i < plan.channels; ++i) {
        call.mean[i] = moments.mean[i];
        call.scale[i] = 1 / std::sqrt(moments.squares[i] / moments.count + call.epsilon);
    }
    if (call.running_mean) update_running(call, moments);
    if (call.skip)
        call.relu ? write_output<T, true, true>(call, plan) : write_output<T, true, false>(call, plan);
    else
        call.relu ? write_output<T, false, true>(call, plan) : write_output<T, false, false>(call, plan);
}

// Sums of the gradient g behind the mask, and of g·(image − mean), of each channel.
struct Sums {
    std::vector<double> gradient, product;

    explicit Sums(int64_t channels) : gradient(channels), product(channels) {}

    template <class Value>
    void add(const Value* gradients, const Value* products, int64_t width) {
        const int64_t channels = static_cast<int64_t>(gradient.size());
        for (int64_t at = 0; at < width; at += channels)
            for (int64_t i = 0; i < channels; ++i) {
                gradient[i] += gradients[at + i];
                product[i] += products[at + i];
            }
    }
};

enum class Mask { none, from_images, from_output };

// The gradient behind ReLU. As in torch, it is zero where the output is ≤ 0, so that NaN passes.
template <class T, Mask mask, bool with_second>
struct Gradient {
    const T *gradient, *second, *images, *output;
    const float *mean, *slope, *offset;

    Gradient(const Backward& call, const Line& line, int64_t first)
        : gradient(static_cast<const T*>(call.gradient) + first),
          second(with_second ? static_cast<const T*>(call.second) + first : nullptr),
          images(static_cast<const T*>(call.images) + first),
          output(mask == Mask::from_output ? static_cast<const T*>(call.output) + first : nullptr),
          mean(line.mean.data()),
          slope(line.slope.data()),
          offset(line.offset.data()) {}

    float operator()(int64_t i) const {
        float value = load(gradient[i]);
        if (with_second) value += load(second[i]);
        if (mask == Mask::from_images) return deviation(i) * slope[i] + offset[i] <= 0 ? 0.0f : value;
        if (mask == Mask::from_output) return load(output[i]) <= 0 ? 0.0f : value;
        return value;
    }

    float deviation(int64_t i) const { return load(images[i]) - mean[i]; }
};

template <class T, Mask mask, bool with_second>
Sums gradient_sums(const Backward& call, const Plan& plan, const Line& line) {
    std::vector<Sums> parts(plan.slices, Sums(plan.channels));
    for_slices(call.shape, plan, [&](int64_t slice) {
        std::vector<float> scratch;
        plan.blocks(slice, [&](int64_t first, int64_t rows, int64_t width) {
            scratch.assign(2 * width, 0.0f);
            float *gradients = scratch.data(), *products = gradients + width;
            for (int64_t row = 0; row < rows; ++row) {
                const Gradient<T, mask, with_second> gradient(call, line, first + row * width);
                T* joined = mask == Mask::from_output ? static_cast<T*>(call.joined) + first + row * width : nullptr;
#pragma omp simd
                for (int64_t i = 0; i < width; ++i) {
                    float value = gradient(i);
                    if (mask == Mask::from_output) {
                        store(joined[i], value);
                        value = load(joined[i]);  // the second pass reads it rounded: sums and numbers must agree
                    }
                    gradients[i] += value;
                    products[i] += value * gradient.deviation(i);
                }
            }
            parts[slice].add(gradients, products, width);
        });
    });
    Sums whole(plan.channels);
    for (const Sums& part : parts) whole.add(part.gradient.data(), part.product.data(), plan.channels);
    return whole;
}

// With n rows, s = Σg and p = Σg·(x − mean): the gradient of the images is scale·weight·(g − s/n − (x − mean)·scale²·p/n),
// a line in g and in x.
template <class T, Mask mask>
void write_gradient(const Backward& call, const Plan& plan, const Line& line, const Sums& sums) {
    const double each = 1.0 / static_cast<double>(call.shape.rows);
    const auto steepness = [&](int64_t i) {
        return -call.scale[i] * call.weight[i] * call.scale[i] * call.scale[i] * sums.product[i] * each;
    };
    const std::vector<float> steep = plan.widened(steepness);
    const std::vector<float> level = plan.widened([&](int64_t i) {
        const double rest = call.mean[i] - static_cast<float>(call.mean[i]);
        return -call.scale[i] * call.weight[i] * sums.gradient[i] * each - steepness(i) * rest;
    });
    const float *slope = line.slope.data(), *by_image = steep.data(), *constant = level.data();
    for_slices(call.shape, plan, [&](int64_t slice) {
        plan.blocks(slice, [&](int64_t first, int64_t rows, int64_t width) {
            for (int64_t row = 0; row < rows; ++row) {
                const Gradient<T, mask, false> gradient(call, line, first + row * width);
                T* result = static_cast<T*>(call.images_gradient) + first + row * width;
#pragma omp simd
                for (int64_t i = 0; i < width; ++i)
                    store(result[i], gradient(i) * slope[i] + (gradient.deviation(i) * by_image[i] + constant[i]));
            }
        });
    });
}

template <class T, Mask mask, bool with_second>
void backward(const Backward& call) {
    const Plan plan(call.shape);
    const Line line(plan, call.mean, call.scale, call.weight, call.bias);
    Sums sums = gradient_sums<T, mask, with_second>(call, plan, line);
    for (int64_t i = 0; i < plan.channels; ++i) {
        sums.product[i] -= (call.mean[i] - static_cast<float>(call.mean[i])) * sums.gradient[i];
        call.weight_gradient[i] = static_cast<float>(sums.product[i] * call.scale[i]);
        call.bias_gradient[i] = static_cast<float>(sums.gradient[i]);
    }
    if (mask != Mask::from_output) return write_gradient<T, mask>(call, plan, line, sums);
    Backward joined = call;  // what the first pass wrote is behind the mask already
    joined.gradient = call.joined;
    write_gradient<T, Mask::none>(joined, plan, line, sums);
}

template <class T>
void backward(const Backward& call) {
    if (!call.relu) return backward<T, Mask::none, false>(call);
    if (!call.output) return backward<T, Mask::from_images, false>(call);
    call.second ? backward<T, Mask::from_output, true>(call) : backward<T, Mask::from_output, false>(call);
}

}  // namespace

extern "C" void normalise_forward(const Forward* call) {
    call->shape.bfloat16 ? forward<bfloat16>(*call) : forward<float>(*call);
}

extern "C" void normalise_backward(const Backward* call) {
    call->shape.bfloat16 ? backward<bfloat16>(*call) : backward<float>(*call);
}
