package main

// remedies are, by name, what to do about the reasons and events that are not error codes. The remedies of the codes
// are in internal/kms.
var remedies = map[string]string{
	// Keyconvoy's own reasons.
	"Succeeded":              "Nothing.",
	"PendingImport":          "Wrap the material and put it into `spec.material`: [Bring your own key](bring-your-own-key.md). After the material expired or was deleted, or if the module lost a key that `spec.adopt` names, import the same material.",
	"KeyStoreNotFound":       "Create the key store, or delete the object and create it again with another `keyStoreRef`.",
	"KeyStoreNotReady":       "See the conditions of the key store.",
	"KeyNotReady":            "See the conditions of the master key or DataKey that the message names. If the recipient is an ImportedKey whose import parameters have expired, request new ones with the annotation `keyconvoy.io/renew-import-parameters`.",
	"SourceNotFound":         "Create the Secret or ConfigMap, with the entry that the message names.",
	"TargetNotOwned":         "Delete the Secret with that name (for a ClusterExportedDataKey: the ExportedDataKey in the namespace), or create the object again with another `target.name`. The operator never overwrites it.",
	"InputReplaced":          "A name now belongs to another data key or recipient than the one for which the verb `export` was checked, or to another ServiceAccount than the one for which the access key was created. Find out who replaced it. To continue anyway, delete the object and create it again, or change the spec of the export.",
	"ServiceAccountNotFound": "Create the ServiceAccount. The access key belongs to it from then on.",
	"KeysMissing":            "If the HSM was replaced, restore its backup into the new token. If there is no backup, import the material of each key again into its ImportedKey. If `spec.pkcs11` was changed by mistake, change it back. `status.missingKeys` lists the keys.",
	"KeyStoreInUse":          "Delete the master keys that the message names, or wait until they are deleted. The key store and its module remain until then, so that keys and import key pairs can be destroyed.",
	"KeyVersionTaken":        "Delete one of the two objects. Deleting the one that did not adopt the key does not change the key.",
	"SeveralFormerKeys":      "Delete the object. Create it again with the versions of the key that it had in `adopt`, or without `adopt` to make a new key: [Backup and restore](backup-and-restore.md).",
	"NamespacesFailed":       "`status.failures` names the first ten namespaces with their reasons; see the conditions of the ExportedDataKeys there.",
	"NamespacesPending":      "Wait. If the reason persists, see the conditions of the ExportedDataKeys that are not ready.",
	"ModuleMisconfigured":    "Compare `spec.pkcs11` with the operator's `--pkcs11-module` and with the token; the message says what does not match. For the software store, restore the Secret with the root key. The operator retries every minute.",
	"PINRefused":             "Put the correct PIN into the Secret. The operator does not retry a rejected PIN. If you changed the PIN on the token instead, delete the Secret and create it again. After five wrong PINs from one namespace the operator tries only one more every ten minutes. Unlock a locked PIN with the tools of the token.",
	"WrongResult":            "Check the device and ask the vendor of its library: the operator has opened the module again and tested it. `status.suspectPeriods` says since when results may have been wrong; exports of that time are repeated by themselves. Recipients read them again: [Hardware modules](hardware-modules.md#if-results-are-wrong).",
	"DataKeyDamaged":         "Create another DataKey, and change what refers to this one. The operator does not replace a data key that may be in use.",
	"APIServer":              "See the operator's log, for example for missing permissions or exceeded quotas. The operator retries with increasing delays.",

	"NamespaceTerminating": "Nothing: the object is deleted with its namespace. If a namespace remains `Terminating`, its conditions say why.",

	// Events.
	"DataKeyVerified":     "The data key opens. If it was generated in a period of `status.suspectPeriods` of its key store, rotate it: [Rotate a data key](rotate-a-data-key.md).",
	"ExportRepeated":      "The former export may not open. The recipient reads the Secret again. The event `WrongResult` of the key store says why.",
	"KeyState":            "The state of a master key changed. The event is a warning if the material expired or was deleted, or the key was destroyed. If that was not intended, import the same material again.",
	"KeyRotated":          "A GeneratedKey has a new primary version. Data keys under older versions can still be decrypted: [Generated keys](generated-keys.md).",
	"KeyAdopted":          "An object with `spec.adopt` took over a key that was in the module. If you did not expect it, find out who created the object.",
	"KeyInUse":            "A key is about to be destroyed, but DataKeys still depend on it. If that was not intended, cancel the deletion (`desiredState: Enabled`).",
	"KeyDestroyed":        "The object was deleted with `deletionPolicy: Delete`, and the operator destroyed the key in the module.",
	"KeyVersionSuspect":   "The module may have returned wrong results when it generated a version of a GeneratedKey, which may be less random than it should be. Rotate the key and re-encrypt its data keys, or move them to a new key: [Generated keys](generated-keys.md). Versions that are suspect have `suspect: true` in `status.versions`.",
	"LeftInModule":        "The object was deleted after its key store, or the key store was changed to another token, so the key may still be in the module. To remove it, create the key store again, adopt the key, and delete that object with `deletionPolicy: Delete`.",
	"KeyStoreAvailable":   "A key store is available again. Objects that waited for it continue automatically.",
	"KeyStoreUnavailable": "A key store is unavailable, so nothing is imported, generated or exported in it. See its conditions. The operator retries.",
	"ModuleCrashed":       "The process of the key store's PKCS#11 library crashed, or a call into the library hung. The operator has started it again, and the condition `ModuleCrashed` names the signal or the function for ten minutes. If it happens again, update the library or ask its vendor: [Hardware modules](hardware-modules.md).",
	"RecipientChanged":    "The operator exported the data key again, for another public key. Check that the recipient has the matching private key. If the change was not intended, find out who made it.",
	"RootKeyCreated":      "A software store created its root key. Back up the Secret that the event names.",
}
