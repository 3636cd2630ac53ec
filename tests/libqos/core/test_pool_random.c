/* SPDX-License-Identifier: Apache-2.0 */
/* The pool under random use: against a model, and by two threads at once. A failure names its seed. */
#include "pool.h"

#include <errno.h>
#include <pthread.h>

#include "check.h"
#include "pool_fixture.h"
#include "random.h"

enum { MODEL_BUFFERS = 6, MODEL_STEPS = 200000, MODEL_HELD = MODEL_BUFFERS * QOS_POOL_SLOTS };

struct held {
    uint64_t slice;
    uint32_t size;
    uint32_t references; /* 0: borrowed, not emitted yet */
    uint8_t mark;
};

struct model {
    struct pool_fixture f;
    struct random r;
    struct held held[MODEL_HELD];
    uint32_t count;
    uint8_t used[MODEL_BUFFERS * QOS_POOL_SLOTS]; /* by slot number */
};

static uint32_t any_size(struct random *r)
{
    static const uint32_t most[] = {64, 64, 832, 3904, 16192, 65536};
    return random_below(r, most[random_below(r, 6)] + 1);
}

static int model_borrow(struct model *m)
{
    struct held h = {.size = any_size(&m->r), .mark = (uint8_t)random_u64(&m->r)};
    int rc = qos_cache_borrow(m->f.cache, h.size, &h.slice);
    if (rc == -EAGAIN)
        return CHECK(m->count > 0);
    uint32_t index = qos_slice_index(h.slice);
    if (!CHECK_EQ(rc, 0) || !CHECK(index < sizeof m->used) || !CHECK(!m->used[index]) || !CHECK(m->count < MODEL_HELD))
        return 0;
    m->used[index] = 1;
    uint8_t *payload = qos_pool_payload(m->f.pool, h.slice);
    payload[-(int)QOS_POOL_HEADROOM] = h.mark;
    if (h.size)
        payload[0] = payload[h.size - 1] = h.mark;
    m->held[m->count++] = h;
    return 1;
}

static int intact(const struct model *m, const struct held *h)
{
    const uint8_t *payload = qos_pool_payload(m->f.pool, h->slice);
    return payload[-(int)QOS_POOL_HEADROOM] == h->mark &&
           (h->size == 0 || (payload[0] == h->mark && payload[h->size - 1] == h->mark));
}

static int model_drop(struct model *m, struct held *h)
{
    int rc = random_below(&m->r, 4) ? qos_cache_drop(m->f.cache, h->slice)
                                    : qos_cache_drop_index(m->f.cache, qos_slice_index(h->slice));
    if (!CHECK(intact(m, h)) || !CHECK_EQ(rc, 0))
        return 0;
    if (h->references > 1) {
        h->references--;
        return 1;
    }
    m->used[qos_slice_index(h->slice)] = 0;
    int stale = CHECK_EQ(qos_cache_drop(m->f.cache, h->slice), -EPROTO);
    *h = m->held[--m->count];
    return stale;
}

static int model_emit(struct model *m, struct held *h)
{
    if (h->references > 0)
        return CHECK_EQ(qos_cache_emit(m->f.cache, h->slice, 1), -EPROTO);
    h->references = 1 + random_below(&m->r, 4);
    return CHECK_EQ(qos_cache_emit(m->f.cache, h->slice, h->references), 0);
}

/* A slice that no borrow gave out: a live one with a bit of its generation, slot or buffer turned. */
static int model_hostile(struct model *m, const struct held *h)
{
    static const uint8_t bits[] = {0, 7, 15, 24, 30, 47, 63}; /* not those of a slot or buffer that may be live, too */
    uint64_t slice = h->slice ^ UINT64_C(1) << bits[random_below(&m->r, sizeof bits)];
    return CHECK_EQ(qos_cache_drop(m->f.cache, slice), -EPROTO);
}

static int model_step(struct model *m, uint32_t step)
{
    /* now more, now less is in use, so that the pool runs empty and is empty of users */
    uint32_t appetite = step / 5000 % 2 ? 25 : 60, dice = random_below(&m->r, 100);
    if (m->count == 0 || dice < appetite)
        return model_borrow(m);
    struct held *h = &m->held[random_below(&m->r, m->count)];
    if (dice < appetite + 15)
        return model_emit(m, h);
    return dice >= 97 ? model_hostile(m, h) : model_drop(m, h);
}

static void test_random_use_agrees_with_a_model(void)
{
    static struct model m;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        m = (struct model){.f = pool_open(MODEL_BUFFERS), .r = {seed}};
        for (uint32_t step = 0; step < MODEL_STEPS; step++) {
            if (!model_step(&m, step)) {
                printf("    seed %" PRIu64 ", step %u\n", seed, step);
                return;
            }
        }
        CHECK_EQ(m.count > 0 ? qos_cache_close(m.f.cache) : 0, m.count);
        while (m.count > 0)
            if (!model_drop(&m, &m.held[m.count - 1]))
                return;
        pool_close(&m.f);
    }
}

/* ---- Two caches in two threads on one pool, which is large enough for both ---- */

struct user {
    struct qos_pool *pool;
    uint64_t seed;
    int error;
};

static void *use(void *argument)
{
    enum { KEEP = 4 };
    struct user *u = argument;
    struct qos_cache *cache = qos_cache_new(u->pool);
    struct random r = {u->seed};
    uint64_t kept[KEEP];
    uint32_t n = 0;
    for (int i = 0; i < 50000; i++) {
        if (n < KEEP && random_below(&r, 2)) {
            int rc = qos_cache_borrow(cache, any_size(&r), &kept[n]);
            if (rc == 0)
                *qos_pool_payload(u->pool, kept[n++]) = (uint8_t)u->seed;
            else
                u->error = rc;
        } else if (n > 0) {
            n--;
            if (*qos_pool_payload(u->pool, kept[n]) != (uint8_t)u->seed || qos_cache_drop(cache, kept[n]) != 0)
                u->error = -EPROTO;
        }
    }
    while (n > 0)
        (void)qos_cache_drop(cache, kept[--n]);
    if (qos_cache_close(cache) != 0)
        u->error = -EBUSY;
    return NULL;
}

static void test_two_threads_share_a_pool(void)
{
    struct pool_fixture f = pool_open(64);
    struct user users[2] = {{.pool = f.pool, .seed = 11}, {.pool = f.pool, .seed = 22}};
    pthread_t thread;
    if (!CHECK_EQ(pthread_create(&thread, NULL, use, &users[0]), 0))
        return;
    use(&users[1]);
    pthread_join(thread, NULL);
    CHECK_EQ(users[0].error, 0);
    CHECK_EQ(users[1].error, 0);
    pool_close(&f);
}

int main(void)
{
    CHECK_RUN(test_random_use_agrees_with_a_model);
    CHECK_RUN(test_two_threads_share_a_pool);
    return check_done();
}
