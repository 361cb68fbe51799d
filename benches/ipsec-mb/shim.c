/* What of intel-ipsec-mb is in macros and structures: the functions that its manager chose for this CPU. */
#include <intel-ipsec-mb.h>

IMB_MGR *spindle_manager(void) {
    IMB_MGR *manager = alloc_mb_mgr(0);
    if (manager != NULL)
        init_mb_mgr_auto(manager, NULL);
    return manager;
}

void spindle_manager_free(IMB_MGR *manager) { free_mb_mgr(manager); }

/* The functions for keys of so many octets, and the sizes of the structures that they work on. 0: no such keys. */
int spindle_functions(IMB_MGR *manager, size_t length, aes_gcm_pre_t *expand, aes_gcm_enc_dec_t *seal,
                      aes_gcm_enc_dec_t *open, size_t *key, size_t *context) {
    *key = sizeof(struct gcm_key_data);
    *context = sizeof(struct gcm_context_data);
    switch (length) {
    case 16:
        *expand = manager->gcm128_pre, *seal = manager->gcm128_enc, *open = manager->gcm128_dec;
        return 1;
    case 24:
        *expand = manager->gcm192_pre, *seal = manager->gcm192_enc, *open = manager->gcm192_dec;
        return 1;
    case 32:
        *expand = manager->gcm256_pre, *seal = manager->gcm256_enc, *open = manager->gcm256_dec;
        return 1;
    default:
        return 0;
    }
}
