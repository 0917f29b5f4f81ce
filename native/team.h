// A few threads that work on one piece after another.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace hydraprune {

class Team {
  public:
    explicit Team(int threads) {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    }
    ~Team() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }
    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // Call task(piece, thread) for every piece in [0, pieces); pieces go to whichever thread is free.
    template <class Task>
    void run(int pieces, const Task& task) {
        if (workers_.empty() || pieces < 2) {
            for (int piece = 0; piece < pieces; ++piece) task(piece, 0);
            return;
        }
        call_ = [&](int thread) {
            for (int piece; (piece = next_.fetch_add(1)) < pieces;) task(piece, thread);
        };
        next_ = 0;
        busy_ = static_cast<int>(workers_.size());
        {
            std::lock_guard<std::mutex> lock(mutex_);
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        call_(0);
        for (int spins = 0; busy_.load(std::memory_order_acquire) > 0; ++spins)
            if (spins > kSpins) std::this_thread::yield();
    }

  private:
    static constexpr int kSpins = 2000;

    void work(int thread) {
        unsigned seen = 0;
        for (;;) {
            for (int spins = 0; generation_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) {
            }
            if (generation_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_.load() != seen; });
            }
            seen = generation_.load(std::memory_order_acquire);
            if (stop_) return;
            call_(thread);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> generation_{0};
    std::atomic<int> busy_{0}, next_{0};
    std::atomic<bool> stop_{false};
    std::function<void(int)> call_;
};

}  // namespace hydraprune
