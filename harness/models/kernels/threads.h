// Tasks shared out among threads that live for one region: nothing is left behind to spin, or to be lost in a fork.
#pragma once
#include <pthread.h>

namespace {

enum { MOST_THREADS = 256 };  // more are not started

template <typename Run>
struct Region {
  Run *run;
  long tasks;
  long next;
};

template <typename Run>
struct Worker {
  Region<Run> *region;
  long number;
};

template <typename Run>
void *work(void *argument) {
  Worker<Run> *worker = (Worker<Run> *)argument;
  Region<Run> *region = worker->region;
  for (;;) {
    long task = __atomic_fetch_add(&region->next, 1, __ATOMIC_RELAXED);
    if (task >= region->tasks) return nullptr;
    (*region->run)(task, worker->number);
  }
}

// Call run(task, worker) for every task, on as many threads at most, of which the caller is one. A thread that cannot
// be started is done without.
template <typename Run>
void share_out(long tasks, long threads, Run run) {
  Region<Run> region = {&run, tasks, 0};
  if (threads > MOST_THREADS) threads = MOST_THREADS;
  if (threads > tasks) threads = tasks;
  Worker<Run> workers[MOST_THREADS];
  pthread_t started[MOST_THREADS];
  long count = 0;
  for (long number = 1; number < threads; number++) {
    workers[number] = {&region, number};
    if (pthread_create(&started[count], nullptr, work<Run>, &workers[number]) == 0) count++;
  }
  workers[0] = {&region, 0};
  work<Run>(&workers[0]);
  for (long index = 0; index < count; index++) pthread_join(started[index], nullptr);
}

}  // namespace
