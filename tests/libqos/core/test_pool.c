/* SPDX-License-Identifier: Apache-2.0 */
#include "pool.h"

#include <errno.h>

#include "check.h"
#include "pool_fixture.h"
#include "random.h"

static uint64_t borrow(struct pool_fixture *f, uint32_t size)
{
    uint64_t slice = 0;
    CHECK_EQ(qos_cache_borrow(f->cache, size, &slice), 0);
    return slice;
}

static void test_slices_are_packed(void)
{
    uint64_t slice = qos_slice_make(0xfffff, 8191 * 8, 0x7fff, 0xffff);
    CHECK_EQ(slice, UINT64_MAX);
    slice = qos_slice_make(0x12345, 0x1a8, 0x456, 0x789a);
    CHECK_EQ(slice, UINT64_C(0x12345) << 44 | UINT64_C(0x35) << 31 | UINT64_C(0x456) << 16 | 0x789a);
    CHECK_EQ(qos_slice_buffer(slice), 0x12345);
    CHECK_EQ(qos_slice_offset(slice), 0x1a8);
    CHECK_EQ(qos_slice_slot(slice), 0x456);
    CHECK_EQ(qos_slice_generation(slice), 0x789a);
    CHECK_EQ(qos_slice_index(qos_slice_make(3, 192, 7, 1)), 3 * QOS_POOL_SLOTS + 7);
}

static void test_a_pool_has_a_bounded_number_of_buffers(void)
{
    uint64_t memory[1];
    CHECK(qos_pool_new(memory, 0) == NULL);
    CHECK(qos_pool_new(memory, QOS_POOL_MAX_BUFFERS + 1) == NULL);
    qos_pool_free(NULL);
}

static void test_each_size_gets_its_class(void)
{
    static const struct {
        uint32_t size, bytes;
    } cases[] = {
        {0, 256},     {1, 256},      {64, 256},      {65, 1024},     {832, 1024},    {833, 4096},
        {3904, 4096}, {3905, 16384}, {16192, 16384}, {16193, 69632}, {65535, 69632}, {65536, 69632},
    };
    struct pool_fixture f = pool_open(5);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t slice = borrow(&f, cases[i].size);
        CHECK_EQ(qos_pool_slot_bytes(f.pool, slice), cases[i].bytes);
        CHECK_EQ(qos_cache_drop(f.cache, slice), 0);
    }
    uint64_t untouched = 7;
    CHECK_EQ(qos_cache_borrow(f.cache, 65537, &untouched), -EMSGSIZE);
    CHECK_EQ(qos_cache_borrow(f.cache, UINT32_MAX, &untouched), -EMSGSIZE);
    CHECK_EQ(untouched, 7);
    pool_close(&f);
}

/* All slots of a class, each with head room and payload of its own: what is written to one is found there in the end. */
static void fill_with(uint32_t size, uint32_t per_buffer)
{
    enum { BUFFERS = 3 };
    static uint64_t slices[BUFFERS * QOS_POOL_SLOTS];
    struct pool_fixture f = pool_open(BUFFERS);
    const struct qos_region *region = qos_pool_region(f.pool);
    uint32_t n = BUFFERS * per_buffer;
    for (uint32_t i = 0; i < n; i++) {
        slices[i] = borrow(&f, size);
        uint8_t *payload = qos_pool_payload(f.pool, slices[i]);
        CHECK_EQ((uintptr_t)payload % 64, 0);
        CHECK(payload == qos_slice_locate(region, slices[i], size, QOS_POOL_HEADROOM));
        CHECK(payload - QOS_POOL_HEADROOM >= region->buffers);
        CHECK(payload + size <= f.base + qos_region_size(BUFFERS));
        memset(payload - QOS_POOL_HEADROOM, (int)(i * 31 + 7), QOS_POOL_HEADROOM + size);
    }
    uint64_t slice;
    CHECK_EQ(qos_cache_borrow(f.cache, size, &slice), -EAGAIN);
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *at = qos_pool_payload(f.pool, slices[i]) - QOS_POOL_HEADROOM;
        uint32_t good = 0;
        while (good < QOS_POOL_HEADROOM + size && at[good] == (uint8_t)(i * 31 + 7))
            good++;
        CHECK_EQ(good, QOS_POOL_HEADROOM + size);
        CHECK_EQ(qos_cache_drop(f.cache, slices[i]), 0);
    }
    pool_close(&f);
}

static void test_slots_are_aligned_and_do_not_overlap(void)
{
    fill_with(64, 256);
    fill_with(832, 64);
    fill_with(3904, 16);
    fill_with(16192, 4);
}

static void test_messages_of_64_kib_take_a_buffer_each(void)
{
    fill_with(65536, 1);
}

static void test_an_empty_pool_recovers_with_the_first_slot_that_comes_back(void)
{
    struct pool_fixture f = pool_open(2);
    uint64_t one = borrow(&f, 65536), two = borrow(&f, 65536), three = 0;
    CHECK_EQ(qos_cache_borrow(f.cache, 1, &three), -EAGAIN);
    CHECK_EQ(qos_cache_drop(f.cache, one), 0);
    three = borrow(&f, 1);
    CHECK_EQ(qos_cache_borrow(f.cache, 65536, &one), -EAGAIN);
    CHECK_EQ(qos_cache_drop(f.cache, two), 0);
    CHECK_EQ(qos_cache_drop(f.cache, three), 0);
    pool_close(&f);
}

static void test_idle_buffers_of_other_classes_are_taken_when_the_pool_is_empty(void)
{
    static const uint32_t sizes[] = {64, 832, 3904, 16192};
    struct pool_fixture f = pool_open(4);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(qos_cache_drop(f.cache, borrow(&f, sizes[i])), 0);
    /* nothing is in use, so everything can be had */
    uint64_t slices[4];
    for (int i = 0; i < 4; i++)
        slices[i] = borrow(&f, 65536);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(qos_cache_drop(f.cache, slices[i]), 0);
    pool_close(&f);
}

static uint64_t owner_word(const struct pool_fixture *f, uint64_t slice)
{
    return ((const uint64_t *)(const void *)f->base)[qos_slice_index(slice)];
}

static void test_owner_words_tell_what_a_slot_does(void)
{
    struct pool_fixture f = pool_open(1);
    uint64_t slice = borrow(&f, 3000), generation = (uint64_t)qos_slice_generation(slice) << 40;
    CHECK_EQ(owner_word(&f, slice), (uint64_t)QOS_SLOT_BORROWED << 56 | generation | 1u << 24 | 2u << 16);
    CHECK_EQ(qos_cache_emit(f.cache, slice, 300), 0);
    CHECK_EQ(owner_word(&f, slice), (uint64_t)QOS_SLOT_EMITTED << 56 | generation | UINT64_C(300) << 24 | 2u << 16);
    for (int i = 0; i < 300; i++)
        CHECK_EQ(qos_cache_drop(f.cache, slice), 0);
    CHECK_EQ(owner_word(&f, slice) >> 56, QOS_SLOT_FREE);
    CHECK_EQ(owner_word(&f, slice) >> 24 & 0xffff, 0);
    pool_close(&f);
}

static void test_each_reference_is_dropped_once(void)
{
    struct pool_fixture f = pool_open(1);
    uint64_t slice = borrow(&f, 10);
    CHECK_EQ(qos_cache_emit(f.cache, slice, 3), 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(qos_cache_drop(f.cache, slice), 0);
    CHECK_EQ(qos_cache_drop(f.cache, slice), -EPROTO);
    CHECK_EQ(qos_cache_emit(f.cache, slice, 1), -EPROTO);
    pool_close(&f);
}

static void test_a_slot_is_emitted_once(void)
{
    struct pool_fixture f = pool_open(1);
    uint64_t slice = borrow(&f, 10);
    CHECK_EQ(qos_cache_emit(f.cache, slice, UINT16_MAX + 1), -EPROTO);
    CHECK_EQ(qos_cache_emit(f.cache, slice, 2), 0);
    CHECK_EQ(qos_cache_emit(f.cache, slice, 2), -EPROTO);
    CHECK_EQ(qos_cache_drop(f.cache, slice), 0);
    CHECK_EQ(qos_cache_drop(f.cache, slice), 0);
    pool_close(&f);
}

static void test_emitting_to_nobody_frees_the_slot(void)
{
    struct pool_fixture f = pool_open(1);
    uint64_t slice = borrow(&f, 65536), again;
    CHECK_EQ(qos_cache_emit(f.cache, slice, 0), 0);
    CHECK_EQ(qos_cache_emit(f.cache, slice, 0), -EPROTO);
    again = borrow(&f, 65536);
    CHECK_EQ(qos_cache_drop(f.cache, again), 0);
    pool_close(&f);
}

static void test_stale_slices_are_refused(void)
{
    struct pool_fixture f = pool_open(1);
    uint64_t old = borrow(&f, 10);
    CHECK_EQ(qos_cache_drop(f.cache, old), 0);
    CHECK_EQ(qos_cache_drop(f.cache, old), -EPROTO);
    uint64_t fresh = borrow(&f, 10);
    CHECK_EQ(qos_slice_index(fresh), qos_slice_index(old));
    CHECK(fresh != old);
    CHECK_EQ(qos_cache_drop(f.cache, old), -EPROTO);
    CHECK_EQ(qos_cache_emit(f.cache, old, 1), -EPROTO);
    CHECK_EQ(qos_cache_emit(f.cache, old, 0), -EPROTO);
    CHECK_EQ(qos_cache_emit(f.cache, fresh, 1), 0);
    CHECK_EQ(qos_cache_drop(f.cache, fresh), 0);
    pool_close(&f);
}

static void test_a_generation_comes_again_after_65536_uses(void)
{
    struct pool_fixture f = pool_open(1);
    uint64_t first = borrow(&f, 65536);
    CHECK_EQ(qos_cache_drop(f.cache, first), 0);
    for (uint32_t use = 1; use < 65536; use++) {
        uint64_t slice = borrow(&f, 65536);
        if (!CHECK(slice != first) || !CHECK_EQ(qos_cache_drop(f.cache, slice), 0))
            break;
    }
    CHECK_EQ(borrow(&f, 65536), first);
    CHECK_EQ(qos_cache_drop(f.cache, first), 0);
    pool_close(&f);
}

static void test_slices_of_nobody_are_refused(void)
{
    struct pool_fixture f = pool_open(3);
    struct qos_cache *other = qos_cache_new(f.pool);
    uint64_t mine = borrow(&f, 16192), theirs = 0;
    CHECK_EQ(qos_cache_borrow(other, 10, &theirs), 0);
    uint32_t buffer = qos_slice_buffer(mine), offset = qos_slice_offset(mine);
    uint64_t hostile[] = {
        theirs,
        qos_slice_make(2, 192, 0, 0),           /* in the pool */
        qos_slice_make(3, offset, 0, 0),        /* behind the last buffer */
        qos_slice_make(0xfffff, offset, 0, 0),  /* far behind */
        qos_slice_make(buffer, offset, 1, 0),   /* free */
        qos_slice_make(buffer, offset, 4, 0),   /* the class has four slots */
        qos_slice_make(buffer, offset, 256, 0), /* the next buffer's, in a bitmap */
        qos_slice_make(buffer, offset, 0x7fff, 0),
        mine ^ 1,
        UINT64_MAX,
    };
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        CHECK_EQ(qos_cache_drop(f.cache, hostile[i]), -EPROTO);
        CHECK_EQ(qos_cache_emit(f.cache, hostile[i], 1), -EPROTO);
        CHECK_EQ(qos_cache_emit(f.cache, hostile[i], 0), -EPROTO);
    }
    CHECK(qos_cache_owns(f.cache, mine));
    CHECK(!qos_cache_owns(f.cache, theirs));
    CHECK(!qos_cache_owns(f.cache, qos_slice_make(3, 192, 0, 0)));
    CHECK(!qos_cache_owns(f.cache, qos_slice_make(2, 192, 0, 0)));
    CHECK_EQ(qos_cache_drop(other, theirs), 0);
    CHECK_EQ(qos_cache_drop(f.cache, mine), 0);
    CHECK_EQ(qos_cache_close(other), 0);
    pool_close(&f);
}

static void test_a_slot_is_dropped_by_its_number(void)
{
    struct pool_fixture f = pool_open(2);
    uint64_t slice = borrow(&f, 10);
    CHECK_EQ(qos_cache_emit(f.cache, slice, 2), 0);
    CHECK_EQ(qos_cache_drop_index(f.cache, qos_slice_index(slice)), 0);
    CHECK_EQ(qos_cache_drop_index(f.cache, qos_slice_index(slice)), 0);
    CHECK_EQ(qos_cache_drop_index(f.cache, qos_slice_index(slice)), -EPROTO);
    CHECK_EQ(qos_cache_drop_index(f.cache, 2 * QOS_POOL_SLOTS), -EPROTO);
    CHECK_EQ(qos_cache_drop_index(f.cache, UINT32_MAX), -EPROTO);
    pool_close(&f);
}

static void test_closing_waits_for_slots_that_others_hold(void)
{
    struct pool_fixture f = pool_open(2);
    uint64_t small = borrow(&f, 10), big = borrow(&f, 65536), slice;
    CHECK_EQ(qos_cache_emit(f.cache, big, 2), 0);
    CHECK_EQ(qos_cache_close(f.cache), 2);
    CHECK_EQ(qos_cache_drop(f.cache, small), 0);
    CHECK_EQ(qos_cache_drop(f.cache, big), 0);
    CHECK_EQ(qos_cache_close(f.cache), 1);
    /* what was free is the pool's again, what is held is not */
    struct qos_cache *other = qos_cache_new(f.pool);
    CHECK_EQ(qos_cache_borrow(other, 65536, &slice), 0);
    CHECK_EQ(qos_cache_drop(other, slice), 0);
    CHECK_EQ(qos_cache_close(other), 0);
    CHECK_EQ(qos_cache_drop(f.cache, big), 0);
    pool_close(&f);
}

/* ---- qos_slice_locate: what another process says ---- */

/* A region that nobody can touch: only addresses are computed. */
static struct qos_region addresses(uint32_t buffers)
{
    void *base = mmap(NULL, qos_region_size(buffers), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!CHECK(base != MAP_FAILED))
        exit(1);
    return qos_region_at(base, buffers);
}

static void test_locate_refuses_what_leaves_its_buffer(void)
{
    struct qos_region region = addresses(4);
    static const struct {
        uint32_t buffer, offset, length, headroom;
        int inside;
    } cases[] = {
        {0, 192, 64, 192, 1},
        {3, 192, QOS_POOL_PAYLOAD, 192, 1},
        {4, 192, 64, 192, 0},
        {0xfffff, 192, 64, 192, 0},
        {0, 184, 64, 192, 0},
        {0, 0, 0, 192, 0},
        {0, 0, 0, 0, 1},
        {0, 0, QOS_POOL_STRIDE, 0, 1},
        {0, 0, QOS_POOL_STRIDE + 1, 0, 0},
        {3, 8, QOS_POOL_STRIDE - 8, 8, 1},
        {3, 8, QOS_POOL_STRIDE - 7, 8, 0},
        {3, 65528, QOS_POOL_STRIDE - 65528, 192, 1},
        {3, 65528, QOS_POOL_STRIDE - 65527, 192, 0},
        {0, 192, UINT32_MAX, 192, 0},
        {0, 192, UINT32_MAX - 191, 192, 0},
        {0, 192, 1u << 31, 192, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t slice = qos_slice_make(cases[i].buffer, cases[i].offset, 0x7fff, 0xffff);
        const uint8_t *at = qos_slice_locate(&region, slice, cases[i].length, cases[i].headroom);
        if (cases[i].inside)
            CHECK(at == region.buffers + (size_t)cases[i].buffer * QOS_POOL_STRIDE + cases[i].offset);
        else
            CHECK(at == NULL);
    }
    munmap(region.base, qos_region_size(region.count));
}

static void test_located_memory_is_inside_for_any_slice(void)
{
    enum { BUFFERS = 3, LOOKS = 1000000 };
    struct qos_region region = addresses(BUFFERS);
    struct random r = {20260101};
    uint32_t found = 0;
    for (uint32_t i = 0; i < LOOKS; i++) {
        uint64_t slice = random_u64(&r);
        if (i % 2)
            slice = qos_slice_make(random_below(&r, BUFFERS + 1), random_below(&r, 65536), random_below(&r, 32768), 0);
        uint32_t length = random_below(&r, 4) ? random_below(&r, 80000) : (uint32_t)random_u64(&r);
        const uint8_t *at = qos_slice_locate(&region, slice, length, QOS_POOL_HEADROOM);
        if (!at)
            continue;
        found++;
        size_t offset = (size_t)(at - region.buffers), inside = offset % QOS_POOL_STRIDE;
        if (!CHECK(offset / QOS_POOL_STRIDE < BUFFERS && inside >= QOS_POOL_HEADROOM &&
                   length <= QOS_POOL_STRIDE - inside))
            return;
    }
    CHECK(found > LOOKS / 20);
    munmap(region.base, qos_region_size(BUFFERS));
}

int main(void)
{
    CHECK_RUN(test_slices_are_packed);
    CHECK_RUN(test_a_pool_has_a_bounded_number_of_buffers);
    CHECK_RUN(test_each_size_gets_its_class);
    CHECK_RUN(test_slots_are_aligned_and_do_not_overlap);
    CHECK_RUN(test_messages_of_64_kib_take_a_buffer_each);
    CHECK_RUN(test_an_empty_pool_recovers_with_the_first_slot_that_comes_back);
    CHECK_RUN(test_idle_buffers_of_other_classes_are_taken_when_the_pool_is_empty);
    CHECK_RUN(test_owner_words_tell_what_a_slot_does);
    CHECK_RUN(test_each_reference_is_dropped_once);
    CHECK_RUN(test_a_slot_is_emitted_once);
    CHECK_RUN(test_emitting_to_nobody_frees_the_slot);
    CHECK_RUN(test_stale_slices_are_refused);
    CHECK_RUN(test_a_generation_comes_again_after_65536_uses);
    CHECK_RUN(test_slices_of_nobody_are_refused);
    CHECK_RUN(test_a_slot_is_dropped_by_its_number);
    CHECK_RUN(test_closing_waits_for_slots_that_others_hold);
    CHECK_RUN(test_locate_refuses_what_leaves_its_buffer);
    CHECK_RUN(test_located_memory_is_inside_for_any_slice);
    return check_done();
}
