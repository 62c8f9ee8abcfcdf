(* The covariances of theorems 1 to 3 and of the family (10), with DDPM and blurs as special cases: identities between
   matrices. laws.v shows that they are the covariances of random vectors. *)

From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq fintype bigop.
From mathcomp Require Import order ssralg zmodp ssrnum matrix mxalgebra.
From ssd Require Import matrices.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- Theorems 1 to 3 ---- *)

Section Matrices.
Variable R : realFieldType.

(* M maps the state at s (size n) to the state at t (size m), S and T are the marginal covariances. *)
Definition transition_cov m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_m := T - M *m S *m M^T.
Definition gain m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_(n, m) := S *m M^T *m invmx T.
Definition posterior_cov m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_n := S - gain M S T *m M *m S.
(* The covariance in its other form, (5), with Q the covariance of the transition. *)
Definition posterior_cov_by_precision m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (Q : 'M[R]_m) : 'M[R]_n :=
  invmx (invmx S + M^T *m invmx Q *m M).

(* (4): a transition between isotropic marginals has a covariance iff no direction would need negative variance. *)
Theorem isotropic_transition m n (M : 'M[R]_(m, n)) (sigma_s sigma_t : R) :
  covariance (transition_cov M (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> forall v, sigma_s ^+ 2 * sqnorm (M^T *m v) <= sigma_t ^+ 2 * sqnorm v.
Proof.
have variance v : quad (transition_cov M (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M) v
    = sigma_t ^+ 2 * sqnorm v - sigma_s ^+ 2 * sqnorm (M^T *m v).
  by rewrite quadB quad_congr !quad_scalar.
split=> [[_ psd_noise] v|bound]; first by rewrite -subr_ge0 -variance.
split=> [|v]; last by rewrite variance subr_ge0.
by apply: symmetricB; [|apply: symmetric_congr]; apply: symmetric_scalar.
Qed.

(* (4) as it is computed: by the operator norm. *)
Theorem isotropic_transition_norm N m n (M : 'M[R]_(m, n)) (sigma_s sigma_t : R) : opnorm N M ->
  covariance (transition_cov M (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> sigma_s ^+ 2 * N ^+ 2 <= sigma_t ^+ 2.
Proof. by move/opnorm_tr/(opnorm_scaled_bound sigma_s sigma_t) <-; apply: isotropic_transition. Qed.

(* s -> t -> u is s -> u: the covariances add up to that of the product. *)
Theorem chain_cov l m n (L : 'M[R]_(l, m)) (M : 'M[R]_(m, n)) S T U :
  L *m transition_cov M S T *m L^T + transition_cov L T U = transition_cov (L *m M) S U.
Proof.
rewrite /transition_cov trmx_mul mulmxBr mulmxBl !mulmxA.
by rewrite addrC addrA subrK.
Qed.

(* If both steps have a covariance, so does the direct one. *)
Corollary chain_covariance l m n (L : 'M[R]_(l, m)) (M : 'M[R]_(m, n)) S T U :
  covariance (transition_cov M S T) -> covariance (transition_cov L T U) ->
  covariance (transition_cov (L *m M) S U).
Proof. by move=> covM covL; rewrite -(chain_cov L M S T U); apply/covarianceD/covL/covariance_congr. Qed.

(* With P = M_1:s onto every state: no other gain A than M carries every mean M_1:s x_0 where M does. *)
Theorem transition_gain_unique p m n (A M : 'M[R]_(m, n)) (P : 'M[R]_(n, p)) P' :
  P *m P' = 1%:M -> (forall x : 'cV[R]_p, A *m (P *m x) = M *m (P *m x)) -> A = M.
Proof.
move=> PP' same; rewrite -[A]mulmx1 -[M]mulmx1 -PP' !mulmxA; congr (_ *m P').
apply/trmx_inj/row_matrixP => i; apply: trmx_inj.
by rewrite !rowE !trmx_mul !trmxK -!mulmxA same.
Qed.

(* (6) in a form that shows it to be a covariance, also where Q is singular. *)
Lemma posterior_cov_sum m n (M : 'M[R]_(m, n)) S T : T \in unitmx -> symmetric S -> symmetric T ->
  let J := 1%:M - gain M S T *m M in
  posterior_cov M S T = J *m S *m J^T + gain M S T *m transition_cov M S T *m (gain M S T)^T.
Proof.
move=> unitT symS symT /=; set K := gain M S T.
have KT : K *m T = S *m M^T by rewrite /K /gain mulmxKV.
have step : (1%:M - K *m M) *m S *m M^T = K *m transition_cov M S T.
  by rewrite /transition_cov mulmxBr KT !mulmxBl mul1mx !mulmxA.
rewrite linearB /= tr_scalar_mx trmx_mul mulmxBr mulmx1 mulmxA step subrK.
by rewrite /posterior_cov -/K mulmxBl mul1mx.
Qed.

Theorem posterior_covariance m n (M : 'M[R]_(m, n)) S T : T \in unitmx ->
  covariance S -> covariance T -> covariance (transition_cov M S T) -> covariance (posterior_cov M S T).
Proof.
move=> unitT covS covT covQ; rewrite (posterior_cov_sum M unitT covS.1 covT.1).
by apply: covarianceD; apply: covariance_congr.
Qed.

(* Where the transition has an invertible covariance, so has the state at t: (6) exists wherever (5) does. *)
Theorem marginal_unit m n (M : 'M[R]_(m, n)) S T :
  covariance S -> covariance (transition_cov M S T) -> transition_cov M S T \in unitmx -> T \in unitmx.
Proof.
move=> covS covQ unitQ; have -> : T = M *m S *m M^T + transition_cov M S T by rewrite addrC subrK.
exact: unitmxD (covariance_congr _ covS) covQ unitQ.
Qed.

(* Theorem 2, (5) = (6). The gain through Q is the gain through T. *)
Lemma gain_by_precision m n (M : 'M[R]_(m, n)) S T :
  T \in unitmx -> transition_cov M S T \in unitmx ->
  posterior_cov M S T *m M^T *m invmx (transition_cov M S T) = gain M S T.
Proof.
move=> unitT unitQ; set K := gain M S T; set Q := transition_cov M S T.
have KT : K *m T = S *m M^T by rewrite /K /gain mulmxKV.
have -> : posterior_cov M S T *m M^T = K *m Q.
  by rewrite /posterior_cov -/K /Q /transition_cov mulmxBr KT mulmxBl !mulmxA.
exact: mulmxK.
Qed.

Theorem posterior_cov_forms_agree m n (M : 'M[R]_(m, n)) S T :
  S \in unitmx -> T \in unitmx -> transition_cov M S T \in unitmx ->
  posterior_cov_by_precision M S (transition_cov M S T) = posterior_cov M S T.
Proof.
move=> unitS unitT unitQ; set Q := transition_cov M S T.
have inverse : posterior_cov M S T *m (invmx S + M^T *m invmx Q *m M) = 1%:M.
  rewrite mulmxDr !mulmxA gain_by_precision // /posterior_cov mulmxBl mulmxV //.
  by rewrite mulmxK // subrK.
have [_ unitL] := mulmx1_unit inverse.
by rewrite /posterior_cov_by_precision -[RHS](mulmxK unitL) inverse mul1mx.
Qed.

(* A noise-free transition leaves no variance along M; (5) does not exist there. *)
Theorem posterior_noise_free m n (M : 'M[R]_(m, n)) S T :
  T \in unitmx -> transition_cov M S T = 0 -> M *m posterior_cov M S T = 0.
Proof.
move=> unitT /eqP; rewrite subr_eq0 => /eqP eqT.
by rewrite /posterior_cov /gain mulmxBr !mulmxA -eqT mulmxV // mul1mx subrr.
Qed.

(* Theorem 3, (7). *)
Lemma isotropic_gain m n (M : 'M[R]_(m, n)) (a b : R) : gain M a%:M b%:M = (a / b) *: M^T.
Proof. by rewrite /gain invmx_scalar mul_scalar_mx -scalemxAl mul_mx_scalar scalerA. Qed.

Theorem isotropic_posterior_cov m n (M : 'M[R]_(m, n)) (a b : R) :
  posterior_cov M a%:M b%:M = a *: (1%:M - (a / b) *: (M^T *m M)).
Proof.
rewrite /posterior_cov isotropic_gain mul_mx_scalar -!scalemxAl scalerBr scalemx1.
by rewrite !scalerA.
Qed.

(* The covariance of the error of a linear estimator with gain K, as a square around the best gain G. *)
Lemma error_cov_square m n (M : 'M[R]_(m, n)) (K G : 'M[R]_(n, m)) S T :
  G *m T = S *m M^T -> T *m G^T = M *m S ->
  S - S *m M^T *m K^T - K *m (M *m S - T *m K^T) = S - G *m M *m S + (K - G) *m T *m (K - G)^T.
Proof.
move=> GT TG; rewrite -GT -(mulmxA G M) -TG [(K - G)^T]linearB /= !mulmxBr !mulmxBl !mulmxA !opprB.
set a := G *m T *m G^T; set b := G *m T *m K^T; set c := K *m T *m G^T; set d := K *m T *m K^T.
by rewrite [d - b + _]addrCA [S - a + _]addrA subrK -!addrA; congr (S + _); rewrite addrCA.
Qed.

(* The joint covariance of (x_s, x_t) built forwards from q(x_s) q(x_t|x_s), and backwards from q(x_t) q(x_s|x_t). *)
Theorem joint_cov_forms_agree m n (M : 'M[R]_(m, n)) S T : T \in unitmx -> symmetric S -> symmetric T ->
  let forwards := block_mx 1%:M 0 M 1%:M in
  let backwards := block_mx 1%:M (gain M S T) 0 1%:M in
  let joint := block_mx S (S *m M^T) (M *m S) T in
  forwards *m block_mx S 0 0 (transition_cov M S T) *m forwards^T = joint
  /\ backwards *m block_mx (posterior_cov M S T) 0 0 T *m backwards^T = joint.
Proof.
move=> unitT symS symT /=; set K := gain M S T.
have KT : K *m T = S *m M^T by rewrite /K /gain mulmxKV.
have TK : T *m K^T = M *m S by rewrite -[T]symT -trmx_mul KT trmx_mul trmxK symS.
rewrite !tr_block_mx !trmx0 !tr_scalar_mx !mulmx_block.
rewrite !(mul0mx, mulmx0, mul1mx, mulmx1, add0r, addr0); split; first by rewrite addrC subrK.
by rewrite -(mulmxA K T) TK KT mulmxA subrK.
Qed.

End Matrices.

(* ---- (10): a reverse step with any gain B ---- *)

Section Family.
Variable R : realFieldType.

Definition family_cov m n (B : 'M[R]_(n, m)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_n := S - B *m T *m B^T.

(* Theorem 2 is the member whose gain is the best estimator's. *)
Theorem posterior_in_family m n (M : 'M[R]_(m, n)) S T : T \in unitmx -> symmetric S -> symmetric T ->
  family_cov (gain M S T) S T = posterior_cov M S T.
Proof.
move=> unitT symS symT; rewrite /family_cov /posterior_cov; congr (_ - _).
rewrite -[gain M S T *m T *m _]mulmxA -{2}symT -trmx_mul [X in X^T](_ : _ = S *m M^T) ?mulmxKV //.
by rewrite trmx_mul trmxK symS mulmxA.
Qed.

(* With isotropic noise it is a covariance iff sigma_t^2 B B^T <= sigma_s^2 I ... *)
Theorem family_admissible m n (B : 'M[R]_(n, m)) (sigma_s sigma_t : R) :
  covariance (family_cov B (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> psd ((sigma_s ^+ 2)%:M - sigma_t ^+ 2 *: (B *m B^T)).
Proof.
have -> : sigma_t ^+ 2 *: (B *m B^T) = B *m (sigma_t ^+ 2)%:M *m B^T by rewrite mul_mx_scalar -scalemxAl.
split=> [[]//|psd_cov]; split=> //.
by apply: symmetricB; [|apply: symmetric_congr]; apply: symmetric_scalar.
Qed.

(* ... that is, iff sigma_t |B| <= sigma_s. *)
Theorem family_admissible_norm N m n (B : 'M[R]_(n, m)) (sigma_s sigma_t : R) : opnorm N B ->
  covariance (family_cov B (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> sigma_t ^+ 2 * N ^+ 2 <= sigma_s ^+ 2.
Proof. exact: isotropic_transition_norm. Qed.

End Family.

(* ---- Known processes ---- *)

Section Special.
Variable R : realFieldType.

(* DDPM is M = c I, c^2 = alpha, with variances 1 - alpha bar: its transition has a covariance, and the posterior's
   weights of x_t and of mu_s and its variance are DDPM's. *)
Theorem ddpm n (alpha alpha_bar_s c : R) :
  let beta := 1 - alpha in
  let var_s := 1 - alpha_bar_s in
  let var_t := 1 - alpha * alpha_bar_s in
  let M : 'M[R]_n := c%:M in
  c ^+ 2 = alpha -> alpha <= 1 -> var_t != 0 ->
  [/\ covariance (transition_cov M var_s%:M var_t%:M),
      gain M var_s%:M var_t%:M = (var_s / var_t * c)%:M,
      1%:M - gain M var_s%:M var_t%:M *m M = (beta / var_t)%:M
    & posterior_cov M var_s%:M var_t%:M = (var_s / var_t * beta)%:M].
Proof.
move=> beta var_s var_t M c2 alpha_le1 /eqP var_t_neq0.
have gainE : gain M var_s%:M var_t%:M = (var_s / var_t * c)%:M.
  by rewrite isotropic_gain tr_scalar_mx scale_scalar_mx.
split=> //.
- rewrite /transition_cov tr_scalar_mx -!scalar_mxM -scalar_mxB; split; first exact: tr_scalar_mx.
  by apply: psd_scalar; rewrite mulrAC -expr2 c2 mulrC ddpm_margin subr_ge0.
- by rewrite gainE -scalar_mxM -scalar_mxB -mulrA -expr2 c2 ddpm_weight.
rewrite isotropic_posterior_cov tr_scalar_mx -scalar_mxM scale_scalar_mx -scalar_mxB scale_scalar_mx.
by rewrite -expr2 c2 ddpm_variance.
Qed.

(* Blurs M = V diag(e) V^T with one orthogonal V, such as the DCT-II basis: no two frequencies mix. *)
Section Blur.
Variables (n : nat) (V : 'M[R]_n).
Hypothesis orthogonal : V^T *m V = 1%:M.
Definition blur (e : 'rV[R]_n) : 'M[R]_n := V *m diag_mx e *m V^T.

Lemma blur_tr e : (blur e)^T = blur e.
Proof. by rewrite /blur !trmx_mul trmxK tr_diag_mx mulmxA. Qed.

(* Blurs compose frequency by frequency, so that R_s->u = R_t->u R_s->t wherever the gains multiply. *)
Theorem blur_mul e f : blur e *m blur f = blur (\row_i (e 0 i * f 0 i)).
Proof. by rewrite /blur -!mulmxA (mulmxA V^T) orthogonal mul1mx (mulmxA (diag_mx e)) mulmx_diag. Qed.

Lemma blur_scalar a : a%:M = blur (const_mx a).
Proof. by rewrite /blur diag_const_mx mul_mx_scalar -scalemxAl (mulmx1C orthogonal) scalemx1. Qed.

Lemma blurB e f : blur e - blur f = blur (e - f).
Proof. by rewrite /blur linearB /= mulmxBr mulmxBl. Qed.

Lemma blurZ a e : a *: blur e = blur (a *: e).
Proof. by rewrite /blur linearZ /= -scalemxAr -scalemxAl. Qed.

Theorem blurring_diffusion e (s t : R) :
  [/\ transition_cov (blur e) s%:M t%:M = blur (\row_i (t - s * e 0 i ^+ 2)),
      gain (blur e) s%:M t%:M = blur (\row_i (s / t * e 0 i))
    & posterior_cov (blur e) s%:M t%:M = blur (\row_i (s * (1 - s / t * e 0 i ^+ 2)))].
Proof.
split.
- rewrite /transition_cov blur_tr !blur_scalar !blur_mul blurB; congr blur.
  by apply/rowP => i; rewrite !mxE expr2 mulrA [s * _]mulrC.
- by rewrite isotropic_gain blur_tr blurZ; congr blur; apply/rowP => i; rewrite !mxE.
rewrite isotropic_posterior_cov blur_tr blur_mul blurZ blur_scalar blurB blurZ; congr blur.
by apply/rowP => i; rewrite !mxE expr2.
Qed.

(* The norm of a blur is its largest gain, so (4) is the condition of the frequency kept best. *)
Theorem blur_opnorm (e : 'rV[R]_n) (k : 'I_n) : (forall i, 0 <= e 0 i <= e 0 k) -> opnorm (e 0 k) (blur e).
Proof.
move=> e_max; have e_ge0 i : 0 <= e 0 i by case/andP: (e_max i).
have stretch v : sqnorm (blur e *m v) = \sum_i (e 0 i * (V^T *m v) i 0) ^+ 2.
  rewrite -[blur e]trmxK -quad_gram trmxK blur_tr blur_mul.
  by rewrite quad_congr quad_diag; apply: eq_bigr => i _; rewrite !mxE exprMn expr2.
have isometry v : sqnorm (V^T *m v) = sqnorm v.
  by rewrite sqnorm_mulmx trmxK mulmxA (mulmx1C orthogonal) mul1mx.
split=> // [v|l l_ge0 bound].
  rewrite stretch -(isometry v) sqnormE mulr_sumr; apply: ler_sum => i _.
  by rewrite exprMn ler_wpmul2r ?sqr_ge0 // ler_pexpn2r ?nnegrE //; case/andP: (e_max i).
have := bound (V *m delta_mx k 0); rewrite stretch -(isometry (V *m _)) mulmxA orthogonal mul1mx.
rewrite /sqnorm /dot trmx_delta mul_delta_mx mxE !eqxx mulr1.
rewrite (bigD1 k) //= big1 ?addr0 => [|i /negPf ik]; first by rewrite mxE !eqxx mulr1.
by rewrite mxE ik mulr0 expr0n.
Qed.

End Blur.
End Special.
