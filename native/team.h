// A few threads that work on one piece after another.
#pragma once
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace hydraprune {

// The process, so that a child that was forked knows that its parent's threads are not here.
inline int process() {
#if defined(_WIN32)
    return 0;
#else
    return static_cast<int>(getpid());
#endif
}

// Lets the other thread of a core run, and takes long enough for a spin to be worth counting.
inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

class Team {
  public:
    explicit Team(int threads) {
        try {
            for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
        } catch (...) {  // the machine has no more threads
            stop();
            throw;
        }
    }
    ~Team() { stop(); }
    Team(const Team&) = delete;

    // Call task(piece, thread) for every piece in [0, pieces); pieces go to whichever thread is free. What a task throws
    // is thrown here when all are done.
    template <class Task>
    void run(int pieces, const Task& task) {
        if (workers_.empty() || pieces < 2) {
            for (int piece = 0; piece < pieces; ++piece) task(piece, 0);
            return;
        }
        call_ = [&](int thread) {
            try {
                for (int piece; (piece = next_.fetch_add(1)) < pieces;) task(piece, thread);
            } catch (...) {
                std::lock_guard<std::mutex> lock(mutex_);
                failure_ = std::current_exception();
            }
        };
        next_ = 0;
        open_ = true;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        call_(0);
        // Whoever is still asleep is not waited for: either it sees that the call is closed, or its presence is seen here.
        open_ = false;
        for (int spins = 0; present_ > 0; ++spins)
            if (spins > kSpins) std::this_thread::yield();
            else pause();
        if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    }

  private:
    // Some 20 to 100 µs: layers follow one another faster than a thread that sleeps is woken.
    static constexpr int kSpins = 2000;

    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    void work(int thread) {
        unsigned seen = 0;
        for (;;) {
            for (int spins = 0; generation_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) pause();
            if (generation_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_.load() != seen; });
            }
            seen = generation_.load(std::memory_order_acquire);
            if (stop_) return;
            ++present_;
            if (open_) call_(thread);
            --present_;
        }
    }

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> generation_{0};
    std::atomic<int> present_{0}, next_{0};  // threads that look at the call, and its next piece
    std::atomic<bool> open_{false}, stop_{false};
    std::function<void(int)> call_;
    std::exception_ptr failure_;
};

}  // namespace hydraprune
